"""Calls of a model chunk that one statement runs, and the gathers of weights beside them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..ir.model.model import Function
from ..ir.plan.plan import Layers, Plan
from ..ir.plan.schedules.registry import build_rows
from ..ir.plan.strategy import ROLES


class CallSegment(msgspec.Struct, frozen=True):
    """Calls of a model chunk that are written as one statement or one loop.

    `carried` pairs an argument position with the result position that feeds it in the next call.
    """

    layers: Layers
    module: str
    function: Function
    first: int
    last: int
    carried: tuple[tuple[int, int], ...]

    @property
    def loop(self) -> bool:
        return self.last - self.first > 1


class WeightGatherCode:
    """Writes when weights that are sharded are gathered: those of the next call beside each call.

    The last call of the model retains them where its backward is the next step of every schedule row.
    """

    def __init__(
        self, plan: Plan, segments: Sequence[CallSegment], number: int, *, enabled: bool
    ) -> None:
        self.plan, self.enabled = plan, enabled
        self.last = segments[-1] if segments and number == len(plan.model_chunks) - 1 else None

    def gathers(self, segment: CallSegment) -> bool:
        """Whether calls gather weights before they run."""
        strategy = self.plan.strategy_of(segment.layers)
        sharded = any(n > 1 and "parameter" in ROLES[role].shards for role, n in strategy.axes)
        return self.enabled and sharded and bool(segment.function.state_inputs())

    def first(self, order: Sequence[CallSegment], *, backward: bool = False) -> list[str]:
        """The gather that nothing runs beside; `order` is that in which segments run."""
        if not order or not self.gathers(order[0]):
            return []
        return [f"    run.prefetch({order[0].last - 1 if backward else order[0].first})"]

    def beside(
        self, segment: CallSegment, order: Sequence[CallSegment], *, backward: bool = False
    ) -> list[str]:
        """The gather that a call of a segment runs beside: that of the call after it."""
        at = order.index(segment)
        after = order[at + 1] if at + 1 < len(order) else None
        after = after if after is not None and self.gathers(after) else None
        if not segment.loop:
            number = None if after is None else (after.last - 1 if backward else after.first)
            return [] if number is None else [f"run.prefetch({number})"]
        step = "call - 1" if backward else "call + 1"
        if after is not None and (after.last == segment.first or after.first == segment.last):
            return [f"run.prefetch({step})"]
        if not self.gathers(segment):
            return []
        end = f"max({step}, {segment.first})" if backward else f"min({step}, {segment.last - 1})"
        return [f"run.prefetch({end})"]

    def retained(self, segment: CallSegment) -> list[str]:
        """Keeps the weights of the model's last call for its backward."""
        if segment is not self.last or segment.loop or not self.gathers(segment):
            return []
        if not segment.function.differentiable or not backward_follows(self.plan):
            return []
        return [f"run.retain({segment.first})  # its backward is next"]


def backward_follows(plan: Plan) -> bool:
    """Whether one stage runs the whole model, and the backward of a micro-batch after its forward."""
    if len(plan.model_chunks) > 1:
        return False
    (row,) = build_rows(plan.schedule, 1, plan.micro_batches, 1)
    return all(row[at + 1][0] in "BI" for at, step in enumerate(row) if step[0] == "F")
