"""A plan's pipeline over time: its schedule's own table, simulated with the plan's prices."""

from __future__ import annotations

from ..ir.plan import Plan
from ..ir.schedule import SCHEDULES
from .collective import collective_seconds
from .schedule import Event, simulate, stage_seconds

MOST_EVENTS = 20_000


def timeline(plan: Plan) -> tuple[Event, ...]:
    """Every forward and backward of one step; empty when there are very many."""
    count = len(plan.stages)
    if 2 * count * plan.micro_batches > MOST_EVENTS:
        return ()
    stride = plan.mesh.size // count
    sends = [
        float(collective_seconds("send", s.transfer_bytes, 2, stride, plan.cluster))
        if s.transfer_bytes
        else 0.0
        for s in plan.stages
    ]
    costs = [
        stage_seconds(stage.forward_seconds, stage.backward_seconds, onward, back)
        for stage, onward, back in zip(plan.stages, sends, [0.0, *sends[:-1]], strict=True)
    ]
    return simulate(SCHEDULES[plan.schedule](count, plan.micro_batches), costs).events
