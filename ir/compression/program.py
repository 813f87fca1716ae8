"""Compression programs and algorithms: stages, payload, collective, schedule, source."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .stage import CompressionStages, Reduce, Score

Payload = Literal["gradients", "weights", "momentum", "parameters", "activations", "rows"]
ReplacedCollective = Literal["all_reduce", "reduce_scatter", "all_gather", "send", "exchange_rows"]
ActivePhase = Literal["always", "warmup", "exchange"]
ANY_OPTIMIZER = ("Averaged", "Sharded")  # classes that wrap the user's optimizer


class CompressionProgram(Struct, frozen=True):
    """Stages over one flat fp32 bucket of `payload` that replace `collective`.

    Those of `rows`, which choose the rank that they go to, work on a matrix instead. `accepts_bias`:
    why uncompensated rounding errors are acceptable; empty where they are not. `when`: in which steps
    it runs. `vectors`: how many vectors of the weights' size are sent.
    """

    name: str
    payload: Payload
    collective: ReplacedCollective
    stages: CompressionStages
    accepts_bias: str = ""
    when: ActivePhase = "always"
    vectors: int = 1

    @property
    def robust(self) -> bool:
        """Whether it weighs ranks against each other (scores, medians) instead of adding them up."""
        return any(
            isinstance(stage, Score)
            or (isinstance(stage, Reduce) and stage.rule not in ("sum", "mean"))
            for stage in self.stages
        )


class ExchangeSchedule(Struct, frozen=True):
    """When an algorithm communicates: after `warmup` uncompressed steps, in every `every`-th step.

    Steps count from 0. `delay`: steps after which what was sent is used. With `doubles`, the
    distance of exchanges doubles after so many steps, and again, until it is `most` (0/1 Adam's local
    steps). With `ready`, so many ranks exchange alone: the first that are, or those that a `seed` draws.
    """

    warmup: int = 0
    every: int = 1
    doubles: int = 0
    most: int = 16
    delay: int = 0
    ready: int = 0
    seed: int = 0

    def interval(self, step: int) -> int:
        """Steps from one exchange to the next, `step` steps after the warm-up."""
        times = min(step // self.doubles, 60) if self.doubles else 0
        return min(self.every << times, max(self.most, self.every)) if times else self.every

    def exchanges(self, step: int) -> bool:
        """Whether ranks communicate in a step, `step` steps after the warm-up."""
        return (step + 1) % self.interval(step) == 0

    @property
    def rate(self) -> float:
        """Exchanges per step, in the long run."""
        return 1 / (max(self.most, self.every) if self.doubles else self.every)


class CompressionAlgorithm(Struct, frozen=True):
    """A published algorithm: its programs, its schedule and the optimizer that runs them.

    `optimizer` names a class of `runtime/compression/optimizers` (empty for activations);
    `Averaged` and `Sharded` wrap any optimizer. `vectors`: optimizer states of the weights' size,
    program states excluded. `needs_full_tensors`: it uses norms of full tensors. `settings`: those
    that its name may carry (`settings.py`).
    """

    name: str
    source: str
    programs: tuple[CompressionProgram, ...]
    schedule: ExchangeSchedule = ExchangeSchedule()
    optimizer: str = "Averaged"
    vectors: int = 0
    needs_full_tensors: bool = False
    settings: tuple[str, ...] = ()

    @property
    def is_optimizer(self) -> bool:
        """Whether the algorithm is itself an optimizer, which communicates on its own."""
        return self.optimizer not in ("", *ANY_OPTIMIZER)

    @property
    def scores(self) -> bool:
        """Whether ranks' vectors are chosen by scores on validation data."""
        stages = (stage for program in self.programs for stage in program.stages)
        return any(isinstance(stage, Score) and stage.rule == "zeno" for stage in stages)

    @property
    def robust(self) -> bool:
        """Whether some ranks may send anything."""
        return any(program.robust for program in self.programs)

    @property
    def late(self) -> bool:
        """Whether what was sent is used a step later, and so travels beside its compute."""
        return self.schedule.delay > 0

    @property
    def meets_some(self) -> bool:
        """Whether a rank exchanges with some others alone, and waits for no more."""
        return self.schedule.ready > 0

    def rate(self, program: CompressionProgram) -> float:
        """Runs of `program` per step, after the warm-up."""
        return {"always": 1.0, "warmup": 0.0, "exchange": self.schedule.rate}[program.when]

    def program(self, payload: Payload) -> CompressionProgram | None:
        return next((p for p in self.programs if p.payload == payload), None)
