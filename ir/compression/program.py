"""Programs and algorithms: stage lists with what they apply to, when, and where they come from."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .stage import Stages

Subject = Literal["gradients", "weights", "momentum", "parameters", "activations"]
Result = Literal["all_reduce", "reduce_scatter", "all_gather", "send"]
When = Literal["always", "warmup", "exchange"]
ANY_OPTIMIZER = ("Averaged", "Sharded")  # classes that leave the optimizer to the user


class Program(Struct, frozen=True):
    """A stage list over one flat bucket, in place of the collective `result`.

    `accepts_bias` says why rounding errors may go lost where the laws would keep them. `when` it runs:
    in all steps, while its algorithm warms up, or where it exchanges. `vectors` as long as the weights
    travel together.
    """

    name: str
    subject: Subject
    result: Result
    stages: Stages
    accepts_bias: str = ""
    when: When = "always"
    vectors: int = 1


class Schedule(Struct, frozen=True):
    """When an algorithm talks. Steps count from 0.

    `warmup` steps run uncompressed; every `every` steps there is an exchange.
    """

    warmup: int = 0
    every: int = 1


class Algorithm(Struct, frozen=True):
    """An algorithm of a paper: its programs, its schedule, and the optimizer that carries it.

    `optimizer` names a class of `runtime/compression/optimizers`; empty for activations, which have
    none. `Averaged` and `Sharded` take any optimizer. `vectors` as long as the weights are what it keeps
    beside the states of its programs; `whole`: it looks at whole tensors.
    """

    name: str
    source: str
    programs: tuple[Program, ...]
    schedule: Schedule = Schedule()
    optimizer: str = "Averaged"
    vectors: int = 0
    whole: bool = False

    @property
    def leads(self) -> bool:
        """Whether it is an optimizer itself, which talks to other ranks."""
        return self.optimizer not in ("", *ANY_OPTIMIZER)

    def rate(self, program: Program) -> float:
        """How often a program runs per step, after the warm-up."""
        return {"always": 1.0, "warmup": 0.0, "exchange": 1 / self.schedule.every}[program.when]

    def program(self, subject: Subject) -> Program | None:
        return next((p for p in self.programs if p.subject == subject), None)
