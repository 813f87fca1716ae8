"""Step seconds by Galvatron's formula for 1F1B with asynchronous gradient reduction.

It reads the first and the last stage and sums over all; a bottleneck in a middle stage goes
unnoticed. Source: `pipeline_cost` of Hetu-Galvatron 2.4.
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
    return busy + exposed_reduction(plain, synchronised)


def drained(plain: Sequence[Amount], micro_batches: int) -> Amount:
    """The last stage works without a break."""
    return sum(plain) + (micro_batches - 1) * plain[-1]


def filled(plain: Sequence[Amount], micro_batches: int) -> Amount:
    """The first stage works without a break, except while the others fill and drain."""
    behind = (min(len(plain), micro_batches) - 1) * plain[0]
    return np.maximum(behind, sum(plain[1:])) + plain[0] * max(0, micro_batches + 1 - len(plain))


def exposed_reduction(plain: Sequence[Amount], synchronised: Sequence[Amount]) -> Amount:
    """Seconds that gradient reductions add at the end: later ones hide behind earlier stages."""
    elapsed, latest = plain[0] * 0.0, plain[0] * 0.0
    for seconds, reduced in zip(plain, synchronised, strict=True):
        elapsed = elapsed + seconds
        latest = np.maximum(latest, reduced - elapsed)
    return latest


def plan_seconds(plan: GalvatronPlan, costs: GalvatronCosts) -> float:
    """Step seconds of a full plan."""
    layer_seconds = [costs.layer_seconds(s, plan.batch) for s in plan.layers]
    plain, synchronised, first = list[Amount](), list[Amount](), 0
    for count, ends in zip(plan.division, costs.ends_seconds(plan.ends, plan.batch), strict=True):
        stage_layers = layer_seconds[first : first + count]
        plain.append(sum(s.plain for s in stage_layers) + ends)
        synchronised.append(sum(s.synchronised for s in stage_layers))
        first += count
    return float(step_seconds(plain, synchronised, plan.batch.micro_batches))


def plan_bytes(plan: GalvatronPlan, costs: GalvatronCosts, ranks: int | None) -> list[int]:
    """Bytes of every stage of a full plan; `ranks` that share the gather buffer, if it has one."""
    stages = len(plan.division)
    buffer = costs.buffer_bytes(stages, ranks, plan.batch) if ranks else 0
    stage_bytes, first = list[int](), 0
    for stage, ends in enumerate(costs.ends_bytes(plan.ends, plan.batch)):
        stage_layers = plan.layers[first : first + plan.division[stage]]
        stage_bytes.append(
            ends + buffer + sum(costs.layer_bytes(s, plan.batch, stage) for s in stage_layers)
        )
        first += plan.division[stage]
    return stage_bytes
