"""What a user may ask of the planner."""

from __future__ import annotations

from typing import get_args

import msgspec

from ..cost_model.communication.compressed_collective import kept_vectors
from ..ir.compression.registry import LEADERS
from ..ir.errors import UsageError
from ..ir.plan.flat_shard import Fraction
from ..ir.plan.plan import Memory, Optimizer
from ..ir.plan.strategy import ROLES
from .activations.ladder import ACTIONS
from .layers.mix import FRACTIONS
from .pins import Pin

# fmt: off
OPTIMIZERS: dict[str, int] = {
    "adamw": 2, "adam": 2, "sgd": 0, "momentum": 1, "rmsprop": 1, "adagrad": 1, "lion": 1,
    **{name: kept_vectors(leader) for name, leader in LEADERS.items()},
}
# fmt: on
SCHEDULES = ("auto", "1f1b", "interleaved")


class PlanOptions(msgspec.Struct, frozen=True):
    """Choices of the user; None means that the planner decides or takes the natural default.

    `global_batch`: samples per step. `memory_bytes`: budget per device. `pins`: strategies
    that some layers must take, the last that matches. `memory_actions`: what layers may do with
    their activations. `time_limit_seconds`: after which the best plan so far is taken.
    `schedule`: of the pipeline, one of `SCHEDULES`; `bounds`: where stages begin that are pinned, in
    calls, and the number of calls. `compress`: none, auto or an algorithm; `quality`: what auto may do
    (see `planner/compression/collectives`). `fractions`: of weights, that calls of rare
    functions may cut over zero3.
    """

    global_batch: int | None = None
    memory_bytes: int | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    roles: tuple[str, ...] = tuple(ROLES)
    memory_actions: tuple[str, ...] = ACTIONS
    pins: tuple[Pin, ...] = ()
    bounds: tuple[int, ...] | None = None
    micro_batches: int | None = None
    schedule: str = "auto"
    seed: int = 0
    time_limit_seconds: float | None = None
    compress: str = "none"
    quality: str = "safe"
    fractions: tuple[Fraction, ...] = FRACTIONS

    def check(self) -> None:
        unknown = [r for r in self.roles if r not in ROLES]
        if unknown:
            raise UsageError(f"unknown role {unknown[0]!r}; known: {', '.join(ROLES)}")
        strange = [a for a in self.memory_actions if a not in (*ACTIONS, *get_args(Memory))]
        if strange or not self.memory_actions:
            raise UsageError(
                f"unknown memory action {''.join(strange[:1])!r}; known: {', '.join(ACTIONS)}"
            )
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        limit = self.time_limit_seconds
        if limit is not None and not limit > 0:
            raise UsageError(f"a time limit of {limit} is not a number of seconds")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"unknown optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}"
            )


def optimizer_states(name: str, half: bool, item_bytes: int) -> Optimizer:
    """States per parameter element: moments, and a full-precision copy when training in half."""
    states = OPTIMIZERS[name] + (1 if half else 0)
    return Optimizer(name, states, 4 if half else item_bytes)
