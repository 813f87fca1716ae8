"""What a check is: a name, a bar, and a function that measures; and how checks become a table."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch

State = Literal["passed", "failed", "could not run", "rehearsed"]


class CannotRun(Exception):
    """A check that needs what this machine lacks: the message says what."""


class Machine(NamedTuple):
    """Where checks run: `device` is "cuda", or "cpu" for a rehearsal of the code on small sizes."""

    device: str
    devices: int
    deadline: float  # of time.monotonic()

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


class Row(NamedTuple):
    """What a check measured; `bar` is what passes."""

    name: str
    bar: str
    measured: str
    state: State
    seconds: float = 0.0


Measure = Callable[[Machine], Iterator[Row]]


class Check(NamedTuple):
    """A check gives one row or several. `rows` begin with its name; `needs_devices` GPUs at least."""

    name: str
    bar: str
    measure: Measure
    needs_devices: int


CHECKS: list[Check] = []


def check(name: str, bar: str, needs_devices: int = 1) -> Callable[[Measure], Measure]:
    """Register a check; its function yields rows by `row`."""

    def register(measure: Measure) -> Measure:
        CHECKS.append(Check(name, bar, measure, needs_devices))
        return measure

    return register


def row(name: str, bar: str, measured: str, passed: bool) -> Row:
    return Row(name, bar, measured, "passed" if passed else "failed")


def timed_row(machine: Machine, name: str, bar: str, measured: str, passed: bool) -> Row:
    """A row about speed, which a rehearsal on small sizes does not judge."""
    judged = row(name, bar, measured, passed)
    return judged._replace(state="rehearsed") if machine.small else judged


def run(checks: Sequence[Check], machine: Machine) -> Iterator[Row]:
    """Rows of all checks. One that raises has failed, and says by what; one that the machine or the time
    does not allow could not run, and says so."""
    for one in checks:
        if machine.devices < one.needs_devices:
            lacking = f"needs {one.needs_devices} GPUs, this machine has {machine.devices}"
            yield Row(one.name, one.bar, lacking, "could not run")
        elif machine.seconds_left() <= 0:
            yield Row(one.name, one.bar, "the time of all checks is up", "could not run")
        else:
            yield from _rows(one, machine)


def _rows(one: Check, machine: Machine) -> Iterator[Row]:
    start, count = time.monotonic(), 0
    try:
        for measured in one.measure(machine):
            yield measured._replace(seconds=time.monotonic() - start)
            start, count = time.monotonic(), count + 1
    except CannotRun as reason:
        yield Row(one.name, one.bar, str(reason), "could not run", time.monotonic() - start)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        lines = str(error).strip().splitlines() or [""]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        text = f"{type(error).__name__}: {lines[-1]:.160} ({where})"
        yield Row(one.name, one.bar, text, "failed", time.monotonic() - start)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line of markdown per row."""
    yield "| check | bar | measured | state | s |"
    yield "|---|---|---|---|---|"
    for one in rows:
        yield f"| {one.name} | {one.bar} | {one.measured} | {one.state} | {one.seconds:.1f} |"
