"""Time of a step by Galvatron's formula for 1F1B with asynchronous reduction.

It reads the first and the last stage and sums over all; a middle stage can be the bottleneck without
being seen. Source: `pipeline_cost` of Hetu-Galvatron 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plait.benchmarks.rivals.galvatron_costs import GalvatronCosts
from plait.planner.interop.galvatron_file import GalvatronPlan

Amount = float | NDArray[np.float64]


def step_seconds(
    plain: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
) -> Amount:
    """Seconds of a step from seconds of one micro-batch in every stage; arrays broadcast.

    `plain` counts embedding and head and no reduction of gradients, `synchronised` is of layers
    alone with it.
    """
    busy = np.maximum(drained(plain, micro_batches), filled(plain, micro_batches))
    return busy + late(plain, synchronised)


def drained(plain: Sequence[Amount], micro_batches: int) -> Amount:
    """The last stage works without a break."""
    return sum(plain) + (micro_batches - 1) * plain[-1]


def filled(plain: Sequence[Amount], micro_batches: int) -> Amount:
    """The first stage works without a break, but for what the others need at the start and end."""
    behind = (min(len(plain), micro_batches) - 1) * plain[0]
    return np.maximum(behind, sum(plain[1:])) + plain[0] * max(0, micro_batches + 1 - len(plain))


def late(plain: Sequence[Amount], synchronised: Sequence[Amount]) -> Amount:
    """What reductions add after the end: a stage hides them behind those before it."""
    passed, most = plain[0] * 0.0, plain[0] * 0.0
    for own, reduced in zip(plain, synchronised, strict=True):
        passed = passed + own
        most = np.maximum(most, reduced - passed)
    return most


def plan_seconds(plan: GalvatronPlan, costs: GalvatronCosts) -> float:
    """What a step of a whole plan takes."""
    every = [costs.layer_seconds(s, plan.batch) for s in plan.layers]
    plain, synchronised, first = list[Amount](), list[Amount](), 0
    for count, ends in zip(plan.division, costs.ends_seconds(plan.ends, plan.batch), strict=True):
        own = every[first : first + count]
        plain.append(sum(s.plain for s in own) + ends)
        synchronised.append(sum(s.synchronised for s in own))
        first += count
    return float(step_seconds(plain, synchronised, plan.batch.micro_batches))


def plan_bytes(plan: GalvatronPlan, costs: GalvatronCosts, ranks: int | None) -> list[int]:
    """What every stage of a whole plan holds; `ranks` share the buffer, which not all plans have."""
    stages = len(plan.division)
    buffer = costs.buffer_bytes(stages, ranks, plan.batch) if ranks else 0
    held, first = list[int](), 0
    for stage, ends in enumerate(costs.ends_bytes(plan.ends, plan.batch)):
        own = plan.layers[first : first + plan.division[stage]]
        held.append(ends + buffer + sum(costs.layer_bytes(s, plan.batch, stage) for s in own))
        first += plan.division[stage]
    return held
