"""A row of the comparison with rivals: one planner's answer to one scenario."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

TOLERANCE = 1e-9  # relative, of a reproduced step or price


class Row(msgspec.Struct, frozen=True):
    """An answer under the rival's own judge; None where it does not apply or is not published."""

    problem: str
    scenario: str
    planner: str
    step_seconds: float | None
    dollars: float | None
    too_large: bool | None
    over_fleet: bool | None
    cpu_seconds: float | None
    floor_seconds: float


class Reproduced(msgspec.Struct, frozen=True):
    """How many published answers the judge gives again."""

    what: str
    same: int
    total: int

    def __str__(self) -> str:
        return f"{self.same} of {self.total} {self.what}"


class Comparison(msgspec.Struct, frozen=True):
    """All rows of one problem, and how far its judge gives what was published."""

    rows: tuple[Row, ...]
    reproduced: tuple[Reproduced, ...]


def same(value: float, published: float) -> bool:
    return abs(value - published) <= TOLERANCE * abs(published)


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows of a table; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def number(text: str | None) -> float | None:
    return float(text) if text else None
