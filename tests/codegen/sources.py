"""A model of the zoo as a SOURCE that other processes can load, and traced in float64."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from plait.ir.capture import load_source, trace
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Model


class Sourced(NamedTuple):
    model: Model
    source: str  # FILE.py:make
    file: str  # the traced model


def sourced(name: str, folder: Path, arguments: str) -> Sourced:
    """`arguments` are those of the zoo's function, as written in a call."""
    factory = folder / f"{name}_source.py"
    factory.write_text(
        "from plait.tests import zoo\n"
        f"def make():\n    model, batch = zoo.{name}({arguments})\n    return model.train(), batch\n"
    )
    source = load_source(f"{factory}:make")
    model = cast_model(trace(source.model, source.batch), "float64")
    file = folder / f"{name}.json"
    file.write_bytes(dump(model, "plait/model"))
    return Sourced(model, f"{factory}:make", str(file))
