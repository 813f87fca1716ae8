"""JSON schemas of files, requests and reports, generated from their structs.

python -m plait.api.serve.schema_files FOLDER      writes them anew
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from ...ir.files.json_files import VERSION
from ...ir.files.text_value import TextValue
from ..formats.files import KINDS
from .methods import METHODS
from .reports import REPORTS
from .verb_reports import VERB_REPORTS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by the name of its file."""
    files = {f"file.{n.removeprefix('plait/')}": _file(n, kind.type) for n, kind in KINDS.items()}
    requests = {f"request.{name}": _schema(method.params) for name, method in METHODS.items()}
    reports = {f"report.{name}": _schema(report) for name, report in REPORTS.items()}
    printed = {f"report.{name}": _schema(report) for name, report in VERB_REPORTS.items()}
    return files | requests | printed | reports


def _schema(kind: type) -> dict[str, Any]:
    return {"$schema": DIALECT, **msgspec.json.schema(kind, schema_hook=_text_schema)}


def _file(name: str, kind: type) -> dict[str, Any]:
    """The schema of a file: its struct's, with its format and version. Where the struct holds others of
    its kind, as a model its trace in bfloat16, these have neither."""
    schema = _schema(kind)
    reference = schema.pop("$ref")
    definitions, struct = schema["$defs"], reference.rpartition("/")[2]
    inner = definitions[struct]
    if json.dumps(reference) not in json.dumps(definitions):
        del definitions[struct]
    head = {
        "format": {"const": name},
        "version": {"type": "integer", "minimum": 1, "maximum": VERSION},
    }
    properties, required = {**head, **inner["properties"]}, [*head, *inner["required"]]
    return {**schema, **inner, "properties": properties, "required": required}


def _text_schema(kind: type) -> dict[str, Any]:
    """The schema of a value that files hold as text."""
    if issubclass(kind, TextValue):
        return {"type": "string", "description": (kind.__doc__ or "").split("\n")[0]}
    raise NotImplementedError(f"{kind} in a file")


def schema_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def write(folder: Path) -> None:
    """Write every schema into a folder."""
    for name, schema in schemas().items():
        (folder / f"{name}.json").write_text(schema_text(schema), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
