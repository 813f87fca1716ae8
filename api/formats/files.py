"""Reads and writes the files of Plait, each written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from ...ir.errors import FileError
from ...ir.files.json_files import dump, load
from ...ir.model.model import Model
from ...ir.plan.heterogeneous import HeterogeneousPlan
from ...ir.plan.placement import GRAPH_FORMAT, Placement, PlacementGraph
from ...ir.plan.plan import Plan

T = TypeVar("T")
# fmt: off
FORMATS: dict[str, type] = {
    "plait/plan": Plan, "plait/model": Model, "plait/placement": Placement,
    GRAPH_FORMAT: PlacementGraph, "plait/fleet-plan": HeterogeneousPlan,
}
# fmt: on


def read(path: Path, kind: type[T], format_: str) -> T:
    """A value of one format; raises FileError naming the file and the place in it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    try:
        return load(data, kind, format_)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def format_of(path: Path) -> str:
    """The format that a file names; raises FileError where it names none of `FORMATS`."""
    try:
        head = json.loads(path.read_bytes()).get("format")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError, RecursionError):
        raise FileError(f"{path}: $: not a JSON object") from None
    if head not in FORMATS:
        raise FileError(f"{path}: $.format: {head!r:.60} is none of {', '.join(FORMATS)}")
    return str(head)


def write(path: Path, value: object, format_: str) -> None:
    """Write a value in one format; raises FileError."""
    write_bytes(path, dump(value, format_))


def write_text(path: Path, text: str) -> None:
    """Write a text; raises FileError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
