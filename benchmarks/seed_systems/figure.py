"""What is compared: a figure of a system, and the row that it becomes once measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct

State = Literal["program", "plan", "simulation", "nothing"]
Measure = Callable[[Path | None], float | None]  # of the folder with data; None where it lacks them


class Figure(Struct, frozen=True, kw_only=True):
    """One quantity. `paper`: as published, None where no figure of it is known; `measure`: ours under
    `conditions`, None where there is none; `state`: what the product does of it: a generated program
    runs it, a plan prices it, a benchmark simulates it, or nothing. `long`: takes over ten seconds.
    """

    quantity: str
    unit: str
    state: State
    conditions: str
    paper: float | None = None
    measure: Measure | None = None
    long: bool = False


class System(Struct, frozen=True):
    """A system by its name in the literature, where it was published, and its figures."""

    name: str
    source: str
    figures: tuple[Figure, ...]


class Row(Struct, frozen=True):
    """A figure beside ours. `ours` is None where nothing is measured, or was not in this run."""

    system: str
    quantity: str
    paper: float | None
    ours: float | None
    unit: str
    state: State
    conditions: str


def row(system: System, figure: Figure, data: Path | None, long: bool) -> Row:
    """Measure one figure; long ones only if asked for."""
    skipped = figure.measure is None or (figure.long and not long)
    ours = None if skipped or figure.measure is None else figure.measure(data)
    return Row(
        system.name,
        figure.quantity,
        figure.paper,
        ours,
        figure.unit,
        figure.state,
        figure.conditions,
    )
