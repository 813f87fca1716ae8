"""Reading and writing our files from the command line and the Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ..ir.devices.heterogeneous import FleetPlan
from ..ir.errors import FileError
from ..ir.files import dump, load
from ..ir.model import Model
from ..ir.placement import GRAPH_FORMAT, Placement, PlacementGraph
from ..ir.plan.plan import Plan

T = TypeVar("T")
# fmt: off
FORMATS: dict[str, type] = {
    "plait/plan": Plan, "plait/model": Model, "plait/placement": Placement,
    GRAPH_FORMAT: PlacementGraph, "plait/fleet-plan": FleetPlan,
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


def write(path: Path, value: object, format_: str) -> None:
    """Write a file of ours whole or not at all."""
    write_bytes(path, dump(value, format_))


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
