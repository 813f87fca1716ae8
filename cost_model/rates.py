"""Dollars and energy of a plan's step, from the rates of its cluster's devices.

Devices are paid for as long as a step takes, whether they work or wait; bytes that leave a zone are
paid for by what the zone they come from asks. Energy counts watts at work and waiting.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..ir.plan.groups.schedule import neighbours, tiles_of
from ..ir.plan.plan import Plan
from .pipeline.group_pipeline import shared_bytes, summing_pairs

SECONDS_PER_HOUR = 3600.0


def with_rates(plan: Plan) -> Plan:
    """The plan with the dollars and joules of a step in its prediction, where all rates are said."""
    return replace(
        plan,
        prediction=replace(
            plan.prediction, dollars_per_step=_dollars(plan), joules_per_step=_joules(plan)
        ),
    )


def _dollars(plan: Plan) -> float | None:
    hours, total = plan.prediction.step_seconds / SECONDS_PER_HOUR, _zone_dollars(plan)
    for number in range(len(plan.stages)):
        price = plan.cluster_of(number).rates.dollars_per_hour
        if price is None:
            return None
        total += price * hours * len(plan.ranks_of(number))
    return total


def _joules(plan: Plan) -> float | None:
    total, step = 0.0, plan.prediction.step_seconds
    for number, stage in enumerate(plan.stages):
        rates, count = plan.cluster_of(number).rates, plan.micro_batches_of(number)
        if rates.watts is None:
            return None
        busy = count * (stage.forward_seconds + stage.backward_seconds) + stage.sync_seconds
        busy = min(busy, step)
        each = busy * rates.watts + (step - busy) * rates.idle_watts
        total += each * len(plan.ranks_of(number))
    return total


def _zone_dollars(plan: Plan) -> float:
    """Dollars of what leaves a zone in a step: values and their gradients between stages, and sums of
    gradients over groups of the same calls."""
    if not plan.groups:
        return 0.0
    return sum(
        sent * plan.cluster_of(source).rates.dollars_per_byte
        for source, target, sent in _sent_bytes(plan)
        if plan.cluster_of(source).zone != plan.cluster_of(target).zone
    )


def _sent_bytes(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """(from group, to group, bytes of all their devices) in a step."""
    for one, near in enumerate(neighbours(tiles_of(plan))):
        for other in near.after.values():
            amount = plan.stages[one].transfer_bytes * plan.groups[one].devices
            yield one, other, amount
            yield other, one, amount
    for one, other in summing_pairs(plan.stages):
        shared = shared_bytes(plan.stages[one], plan.stages[other])
        yield one, other, shared * plan.groups[one].devices
