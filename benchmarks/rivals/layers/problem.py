"""Assignment of choices to layers in fixed stages: the problem as data, with a text form.

    problem 8 micro-batches
    stage budget 1024 B, other 64 B, 0.001 s, 0.002 s synchronised
    layers 30 of block
    choice keep 0.004 s, 0.005 s synchronised, 24 B

Equal layers are one line: they are interchangeable, so a solution counts them.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace


class Choice(msgspec.Struct, frozen=True):
    """One way to run one layer in its stage.

    seconds: one micro-batch, forward and backward
    synchronised_seconds: the same with its gradients reduced over ranks
    peak_bytes: all bytes of the layer at the peak of its stage
    """

    name: str
    seconds: float
    synchronised_seconds: float
    peak_bytes: int


class EqualLayers(msgspec.Struct, frozen=True):
    """Equal layers of one stage, and the choices of each."""

    name: str
    count: int
    choices: tuple[Choice, ...]


class LayerStage(msgspec.Struct, frozen=True):
    """Layers of one stage under its memory limit, and the bytes and seconds of everything else."""

    layers: tuple[EqualLayers, ...]
    budget_bytes: int
    other_bytes: int = 0
    seconds: float = 0.0
    synchronised_seconds: float = 0.0

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.other_bytes


class LayerProblem(msgspec.Struct, frozen=True):
    """Stages in order, and the number of micro-batches of a step."""

    stages: tuple[LayerStage, ...]
    micro_batches: int

    def __str__(self) -> str:
        return "\n".join(
            [f"problem {self.micro_batches} micro-batches", *map(_stage_text, self.stages)]
        )


ChoiceCounts = tuple[int, ...]  # how many layers take each choice


class LayerSolution(msgspec.Struct, frozen=True):
    """Counts by stage, layers and choice, their step seconds, and a lower bound of these."""

    counts: tuple[tuple[ChoiceCounts, ...], ...]
    step_seconds: float
    bound_seconds: float

    @property
    def gap(self) -> float:
        return 1 - self.bound_seconds / self.step_seconds if self.step_seconds else 0.0


def _stage_text(stage: LayerStage) -> str:
    lines = [
        f"stage budget {stage.budget_bytes} B, other {stage.other_bytes} B, "
        f"{stage.seconds!r} s, {stage.synchronised_seconds!r} s synchronised"
    ]
    for layers in stage.layers:
        lines.append(f"layers {layers.count} of {layers.name}")
        lines += [
            f"choice {c.name} {c.seconds!r} s, {c.synchronised_seconds!r} s synchronised, "
            f"{c.peak_bytes} B"
            for c in layers.choices
        ]
    return "\n".join(lines)


REAL, INTEGER = r"([-+.\w]+)", r"(-?\d+)"
HEAD = re.compile(rf"problem {INTEGER} micro-batches")
STAGE = re.compile(rf"stage budget {INTEGER} B, other {INTEGER} B, {REAL} s, {REAL} s synchronised")
LAYERS = re.compile(rf"layers {INTEGER} of (\S+)")
CHOICE = re.compile(rf"choice (\S+) {REAL} s, {REAL} s synchronised, {INTEGER} B")


def parse(text: str) -> LayerProblem:
    """Parse the text form; raises ValueError naming a malformed line."""
    micro_batches, stages = -1, list[LayerStage]()
    for number, line in enumerate(text.splitlines()):
        if number == 0 and (match := HEAD.fullmatch(line)):
            micro_batches = int(match[1])
        elif number and (match := STAGE.fullmatch(line)):
            stages.append(
                LayerStage((), int(match[1]), int(match[2]), float(match[3]), float(match[4]))
            )
        elif stages and (match := LAYERS.fullmatch(line)):
            stages[-1] = _with(stages[-1], EqualLayers(match[2], int(match[1]), ()))
        elif stages and stages[-1].layers and (match := CHOICE.fullmatch(line)):
            choice = Choice(match[1], float(match[2]), float(match[3]), int(match[4]))
            *others, last = stages[-1].layers
            last = replace(last, choices=(*last.choices, choice))
            stages[-1] = replace(stages[-1], layers=(*others, last))
        else:
            raise ValueError(f"no line of a problem: {line!r}")
    return LayerProblem(tuple(stages), micro_batches)


def _with(stage: LayerStage, layers: EqualLayers) -> LayerStage:
    return replace(stage, layers=(*stage.layers, layers))
