"""Programs and algorithms: stage lists with what they apply to, when, and where they come from."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .stage import Stages

Subject = Literal["gradients", "weights", "momentum", "parameters", "activations"]
Result = Literal["all_reduce", "reduce_scatter", "all_gather", "send"]


class Program(Struct, frozen=True):
    """A stage list over one flat bucket, in place of the collective `result`.

    `accepts_bias` says why rounding errors may go lost where the laws would keep them.
    """

    name: str
    subject: Subject
    result: Result
    stages: Stages
    accepts_bias: str = ""


class Schedule(Struct, frozen=True):
    """When an algorithm talks. Steps count from 0.

    `warmup` steps run uncompressed; then the variance is frozen when `freezes`; between exchanges lie
    `every` steps.
    """

    warmup: int = 0
    freezes: bool = False
    every: int = 1


class Algorithm(Struct, frozen=True):
    """An algorithm of a paper: its programs, its schedule, and the optimizer that carries it.

    `optimizer` names a class of `runtime/compression/optimizers`; empty for activations, which have
    none. `Averaged` and `Sharded` take any optimizer.
    """

    name: str
    source: str
    programs: tuple[Program, ...]
    schedule: Schedule = Schedule()
    optimizer: str = "Averaged"

    def program(self, subject: Subject) -> Program | None:
        return next((p for p in self.programs if p.subject == subject), None)
