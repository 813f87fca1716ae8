"""One device group of a plan as a stage of an ordinary plan, on a mesh of its own devices.

The calls before and after it are stages of the same strategy there, so that whatever reads a stage of
a plan (layouts, generated code, tables, terms of its price) reads a device group as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from msgspec.structs import replace

from ..memory_action import KEEP
from ..plan import Layers, Plan, Stage


class GroupView(NamedTuple):
    """The group is stage number `stage` of `plan`."""

    plan: Plan
    stage: int


def group_view(plan: Plan, number: int) -> GroupView:
    """The view of the group that runs stage `number`."""
    ((first, last),), total = plan.stages[number].model_chunks, calls_of(plan)
    layers = tuple(replace(x, stage=None) for x in _split(_all_layers(plan, number), (first, last)))
    spans = [span for span in ((0, first), (first, last), (last, total)) if span[0] < span[1]]
    stages = tuple(
        plan.stages[number] if span == (first, last) else Stage((span,)) for span in spans
    )
    viewed = replace(
        plan,
        cluster=plan.cluster_of(number),
        cluster_digest=None,
        mesh=plan.strategy_of(layers[0]).mesh,
        memory_limit_bytes=plan.memory_limit_of(number),
        stages=stages,
        layers=layers,
        groups=(),
    )
    return GroupView(viewed, spans.index((first, last)))


def priced_view(plan: Plan, number: int) -> GroupView:
    """The view with the group's own number of micro-batches, by which its step is priced."""
    view = group_view(plan, number)
    return view._replace(plan=replace(view.plan, micro_batches=plan.micro_batches_of(number)))


def calls_of(plan: Plan) -> int:
    """Number of calls of the model."""
    return max(stage.model_chunks[-1][1] for stage in plan.stages)


def _all_layers(plan: Plan, number: int) -> list[Layers]:
    """Layers for all calls: the group's own, and those of other groups under its strategy."""
    mine = [x for x in plan.layers if x.stage == number]
    strategy = plan.strategy_of(mine[0])
    place = {s.function: i for i, s in enumerate(plan.shardings) if s.strategy == strategy}
    covered = {call for x in mine for call in range(x.first, x.last)}
    layers = list(mine)
    for other in plan.layers:
        for call in range(other.first, other.last):
            if call not in covered:
                covered.add(call)
                sharding = place[plan.shardings[other.sharding].function]
                layers.append(Layers(call, call + 1, sharding, KEEP, batch_only=other.batch_only))
    return _merged(sorted(layers, key=lambda x: x.first))


def _merged(layers: list[Layers]) -> list[Layers]:
    """Neighbours that differ in nothing but their calls as one run."""
    runs: list[Layers] = []
    for x in layers:
        if (
            runs
            and runs[-1].last == x.first
            and replace(runs[-1], first=0, last=0) == replace(x, first=0, last=0)
        ):
            runs[-1] = replace(runs[-1], last=x.last)
        else:
            runs.append(x)
    return runs


def _split(layers: list[Layers], bounds: tuple[int, int]) -> list[Layers]:
    """Runs that do not cross these calls."""
    parts: list[Layers] = []
    for x in layers:
        ends = [x.first, *(b for b in bounds if x.first < b < x.last), x.last]
        parts += [replace(x, first=a, last=b) for a, b in pairwise(ends)]
    return parts
