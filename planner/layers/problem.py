"""Layers in fixed stages, and ways of running them: the search as pure data, with a text form.

    problem 8 micro-batches
    stage budget 1024 B, held 64 B, 0.001 s, 0.002 s synchronised
    layers 30 of block
    choice keep 0.004 s, 0.005 s synchronised, 24 B

Equal layers are one line: which of them runs which way does not matter, so a solution counts them.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace


class Choice(msgspec.Struct, frozen=True):
    """One way of running one layer in its stage.

    seconds: one micro-batch, forward and backward
    synchronised_seconds: the same with its gradients added up over ranks
    held_bytes: all that the layer holds at the peak of its stage
    """

    name: str
    seconds: float
    synchronised_seconds: float
    held_bytes: int


class Layers(msgspec.Struct, frozen=True):
    """Equal layers of one stage, and how each may run."""

    name: str
    count: int
    choices: tuple[Choice, ...]


class Stage(msgspec.Struct, frozen=True):
    """Layers of one stage under its budget, beside bytes and seconds that are the same for all."""

    layers: tuple[Layers, ...]
    budget_bytes: int
    held_bytes: int = 0
    seconds: float = 0.0
    synchronised_seconds: float = 0.0

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.held_bytes


class Problem(msgspec.Struct, frozen=True):
    """Stages in order, one batch in so many micro-batches."""

    stages: tuple[Stage, ...]
    micro_batches: int

    def __str__(self) -> str:
        return "\n".join([f"problem {self.micro_batches} micro-batches", *map(_stage, self.stages)])


Counts = tuple[int, ...]  # how many layers take each choice


class Solution(msgspec.Struct, frozen=True):
    """Counts by stage, layers and choice; the step they take; what no solution can be faster than."""

    counts: tuple[tuple[Counts, ...], ...]
    step_seconds: float
    bound_seconds: float

    @property
    def gap(self) -> float:
        return 1 - self.bound_seconds / self.step_seconds if self.step_seconds else 0.0


def _stage(stage: Stage) -> str:
    lines = [
        f"stage budget {stage.budget_bytes} B, held {stage.held_bytes} B, "
        f"{stage.seconds!r} s, {stage.synchronised_seconds!r} s synchronised"
    ]
    for layers in stage.layers:
        lines.append(f"layers {layers.count} of {layers.name}")
        lines += [
            f"choice {c.name} {c.seconds!r} s, {c.synchronised_seconds!r} s synchronised, "
            f"{c.held_bytes} B"
            for c in layers.choices
        ]
    return "\n".join(lines)


REAL, WHOLE = r"([-+.\w]+)", r"(-?\d+)"
HEAD = re.compile(rf"problem {WHOLE} micro-batches")
STAGE = re.compile(rf"stage budget {WHOLE} B, held {WHOLE} B, {REAL} s, {REAL} s synchronised")
LAYERS = re.compile(rf"layers {WHOLE} of (\S+)")
CHOICE = re.compile(rf"choice (\S+) {REAL} s, {REAL} s synchronised, {WHOLE} B")


def parse(text: str) -> Problem:
    """The problem of a text; ValueError names the line that is none."""
    start, stages = -1, list[Stage]()
    for number, line in enumerate(text.splitlines()):
        if number == 0 and (found := HEAD.fullmatch(line)):
            start = int(found[1])
        elif number and (found := STAGE.fullmatch(line)):
            stages.append(Stage((), int(found[1]), int(found[2]), float(found[3]), float(found[4])))
        elif stages and (found := LAYERS.fullmatch(line)):
            stages[-1] = _with(stages[-1], Layers(found[2], int(found[1]), ()))
        elif stages and stages[-1].layers and (found := CHOICE.fullmatch(line)):
            choice = Choice(found[1], float(found[2]), float(found[3]), int(found[4]))
            *others, last = stages[-1].layers
            last = replace(last, choices=(*last.choices, choice))
            stages[-1] = replace(stages[-1], layers=(*others, last))
        else:
            raise ValueError(f"no line of a problem: {line!r}")
    return Problem(tuple(stages), start)


def _with(stage: Stage, layers: Layers) -> Stage:
    return replace(stage, layers=(*stage.layers, layers))
