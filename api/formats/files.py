"""Reads and writes the files of Plait: read with every check of their kind, written whole or not at
all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from ...ir.analysis.verify_model import verify_model
from ...ir.errors import FileError
from ...ir.files.json_files import dump, parse
from ...ir.files.reading import naming, read_bytes, read_verified
from ...ir.files.whole_file import write_whole
from ...ir.lowering.cast import PRECISIONS
from ...ir.model.model import Model
from ...ir.model.verify import require
from ...ir.plan.engines import ENGINES
from ...ir.plan.placement import (
    GRAPH_FORMAT,
    Placement,
    PlacementGraph,
    check_placement,
    load_graph,
)
from ...ir.plan.plan import Plan
from ...ir.plan.verify import verify_plan

T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of file: the type of its value, and what checks that its parts hold together."""

    type: type
    verify: Callable[[Any], None]


def _verify_plan(plan: Plan) -> None:
    verify_plan(plan)
    for name, value, known in (
        ("precision", plan.precision, PRECISIONS),
        ("engine", plan.engine, ENGINES),
    ):
        require(value in known, f"$.{name}", f"{value!r:.80} is none of {', '.join(known)}")


KINDS: dict[str, Kind] = {
    "plait/plan": Kind(Plan, _verify_plan),
    "plait/model": Kind(Model, verify_model),
    "plait/placement": Kind(Placement, check_placement),
}


def read(path: Path, kind: type[T], format_: str) -> T:
    """The verified value of a file; raises FileError naming the file and the place in it."""
    return read_verified(path, kind, format_, KINDS[format_].verify)


def read_graph(path: Path) -> PlacementGraph:
    """A `placement-graph/1` file; raises FileError naming the file and the place in it."""
    data = read_bytes(path)
    with naming(path):
        return load_graph(data)


def format_of(path: Path) -> str:
    """The format that a file names; raises FileError where it names none that is known."""
    data = read_bytes(path)
    with naming(path):
        return known_format(parse(data))


def known_format(parsed: object) -> str:
    """The format that a JSON value names; raises FileError where it names none that is known."""
    if not isinstance(parsed, dict):
        raise FileError("$: not a JSON object")
    known = (*KINDS, GRAPH_FORMAT)
    head = cast("dict[str, Any]", parsed).get("format")
    if head not in known:
        raise FileError(f"$.format: {head!r:.60} is none of {', '.join(known)}")
    return str(head)


def write(path: Path, value: object, format_: str) -> None:
    """Write a value in one format; raises FileError."""
    write_bytes(path, dump(value, format_))


def write_text(path: Path, text: str) -> None:
    """Write a text; raises FileError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    with naming(path):
        write_whole(path, data)
