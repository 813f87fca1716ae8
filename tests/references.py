"""Pages of docs/reference as they follow from the code: the API, the commands, the JSON schemas."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import plait
from plait.api.cli import command_parser
from plait.api.commands.table import GROUPS
from plait.tests.paths import ROOT

SCHEMAS = ROOT / "api" / "serve" / "schemas"
WRITTEN = "Written by `pytest --update-golden tests/test_references.py`; it follows the code."


def api_page() -> str:
    """Every public name with its signature and docstring; public methods and properties of classes."""
    lines = ["# Python API", "", WRITTEN, ""]
    for name in plait.__all__:
        value = getattr(plait, name)
        lines += [f"## `plait.{name}`", "", *_described(name, value)]
        if inspect.isclass(value) and not issubclass(value, Exception):
            for member, inner in _members(value):
                lines += [f"### `{name}.{member}`", "", *_described(member, inner)]
    return "\n".join(lines)


def _described(name: str, value: Any) -> Iterator[str]:
    signature = _signature(name, value)
    if signature:
        yield from ("```text", *signature, "```", "")
    text = inspect.getdoc(value)
    if text:
        yield from (_escaped(text), "")


def _signature(name: str, value: Any) -> list[str]:
    """`name(a, b=1)`, one parameter a line where it is long."""
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return []
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return []
    texts = [
        str(p.replace(annotation=p.empty)) for p in parameters if p.name not in ("self", "cls")
    ]
    whole = f"{name}({', '.join(texts)})"
    return [whole] if len(whole) <= 100 else [f"{name}(", *(f"    {p}," for p in texts), ")"]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class of ours declares, in the order of its source."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("plait."):
            continue
        for name, value in vars(base).items():
            inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if name.startswith("_") or name in seen or not (callable(inner) or _property(inner)):
                continue
            seen.add(name)
            if inspect.getdoc(inner):
                yield name, inner


def _property(value: Any) -> bool:
    return isinstance(value, property)


def commands_page() -> str:
    """Every command with its arguments, by group."""
    lines = ["# Commands", "", WRITTEN, ""]
    (action,) = (a for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for title, group in GROUPS.items():
        lines += [f"## {title.capitalize()}", ""]
        for command in group:
            lines += [
                f"### `plait {command.name}`",
                "",
                f"{command.help[0].upper()}{command.help[1:]}.",
                "",
            ]
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [_row(a) for a in action.choices[command.name]._actions if a.dest != "help"]
            lines.append("")
    return "\n".join(lines)


def _row(action: argparse.Action) -> str:
    values = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    takes = values or (action.metavar if isinstance(action.metavar, str) else action.dest.upper())
    named = ", ".join(action.option_strings)
    shown = f"{named} {takes}".strip() if action.nargs != 0 else named
    return f"| `{shown}` | {_cell(action.help or '')} |"


def _cell(text: str) -> str:
    return _escaped(" ".join(text.replace("%%", "%").split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text of a docstring as Markdown, in which `<` and `*` would mean something."""
    return re.sub(r"(?<!`)([<*])(?!`)", r"\\\1", text) if "`" not in text else text


def schemas_page() -> str:
    """The files, reports and requests, and the fields of each; the schemas themselves ship."""
    lines = ["# JSON schemas", "", WRITTEN, ""]
    lines += [
        "The schemas ship with the package, in `api/serve/schemas`. Everything that `--json` prints is"
    ]
    lines += [
        "a `report`, everything that `plait serve` reads a `request`, and what is kept a `file`.",
        "",
    ]
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## `{path.stem}`", "", *_fields(schema), ""]
    return "\n".join(lines)


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    top = _resolved(schema, schema)
    text = top.get("description") or schema.get("description")
    if text:
        yield from (" ".join(text.split()), "")
    needed = set(top.get("required", ()))
    yield from ("| field | type | needed |", "|---|---|---|")
    for name, value in top.get("properties", {}).items():
        yield f"| `{name}` | {_kind(value, schema)} | {'yes' if name in needed else ''} |"


def _resolved(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = value.get("$ref", "").rsplit("/", 1)[-1]
    return schema["$defs"][name] if name else value


def _kind(value: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[-1]
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(v, schema) for v in value["anyOf"]))
    kind = value.get("type", "any")
    return f"array of {_kind(value['items'], schema)}" if value.get("items") else str(kind)


PAGES: dict[str, Callable[[], str]] = {
    "api": api_page,
    "commands": commands_page,
    "schemas": schemas_page,
}
