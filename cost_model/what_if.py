"""Step of a plan with slow ranks and lost links, simulated event by event.

    rank 3 slow ──▶ its stage waits for it ──▶ F and B of the stage longer ──▶ schedule simulated again
    link lost   ──▶ its traffic is slower, or takes the next outer level

Ranks of a stage work in step, so a stage is as slow as its slowest rank and its worst link.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ..ir.devices.cluster import Cluster
from ..ir.errors import InfeasibleError
from ..ir.plan.groups.view import priced_view
from ..ir.plan.plan import Plan
from .communication.stage_transfer import plan_transfers
from .explain.overlap_terms import Communication, communication
from .explain.step_terms import StageTerms, stage_times
from .explain.term import total
from .pipeline.closed_form import simulate_plan
from .pipeline.group_pipeline import gradient_sum_seconds, simulate_groups
from .pipeline.simulate import Timeline
from .scaled_cluster import ScaleFactors, scaled_device, scaled_link


class LostLink(msgspec.Struct, frozen=True):
    """Lost `fraction` of a level's bandwidth, for all ranks or for one; 1: its traffic takes the
    next outer level."""

    level: int
    fraction: float
    rank: int | None = None


class Conditions(msgspec.Struct, frozen=True):
    """Faults: `slow` ranks with their slowdown factors, and `lost` links."""

    slow: tuple[tuple[int, float], ...] = ()
    lost: tuple[LostLink, ...] = ()


class SimulatedStep(msgspec.Struct, frozen=True):
    """Simulated step: the pipeline's timeline, then `sync_seconds` of every stage. `communication`: of
    every stage, over the step."""

    timeline: Timeline
    sync_seconds: tuple[float, ...]
    communication: tuple[Communication, ...] = ()

    @property
    def most_exposed(self) -> Communication:
        """That of the stage that waits longest for it."""
        return max(self.communication, key=lambda one: one.exposed_seconds)

    @property
    def step_seconds(self) -> float:
        """Seconds of the pipeline, then of the slowest synchronisation, as plans are priced."""
        return self.timeline.makespan_seconds + max(self.sync_seconds)


def simulate_step(plan: Plan, conditions: Conditions) -> SimulatedStep:
    """Simulate one step of a plan; raises InfeasibleError where a lost link disconnects ranks."""
    if plan.groups:
        return _simulate_groups(plan, conditions)
    count = len(plan.stages)
    clusters = [stage_cluster(plan, stage, conditions) for stage in range(count)]
    times = [stage_times(plan, s, c) for s, c in zip(plan.stages, clusters, strict=True)]
    busy = [
        (t.forward.value / plan.micro_batches, t.backward.value / plan.micro_batches) for t in times
    ]
    timeline = simulate_plan(plan, busy, transfer_seconds(plan, clusters))
    return SimulatedStep(timeline, tuple(t.sync.value for t in times), _communication(times))


def _simulate_groups(plan: Plan, conditions: Conditions) -> SimulatedStep:
    """The step of a plan whose stages are device groups; links between groups stay as they are."""
    busy: list[tuple[float, float]] = []
    sync: list[float] = []
    terms: list[StageTerms] = []
    added = gradient_sum_seconds(plan.cluster, plan.groups, plan.stages)
    for number in range(len(plan.stages)):
        view = priced_view(plan, number)
        cluster = _degraded(plan.cluster_of(number), plan.ranks_of(number), conditions)
        times = stage_times(view.plan, view.plan.stages[view.stage], cluster)
        count = view.plan.micro_batches
        terms.append(times)
        busy.append((times.forward.value / count, times.backward.value / count))
        sync.append(times.sync.value + added[number])
    return SimulatedStep(simulate_groups(plan, busy), tuple(sync), _communication(terms))


def _communication(stages: Sequence[StageTerms]) -> tuple[Communication, ...]:
    return tuple(
        communication(total("stage", [stage.forward, stage.backward, stage.sync]))
        for stage in stages
    )


def transfer_seconds(plan: Plan, clusters: Sequence[Cluster]) -> list[float]:
    """Seconds of the transfer after each stage, on the slower of its two sides."""
    seconds_by_stage = [
        [transfer.seconds for transfer in plan_transfers(plan, c)] for c in clusters
    ]
    return [
        max(seconds_by_stage[s][s], seconds_by_stage[(s + 1) % len(seconds_by_stage)][s])
        for s in range(len(seconds_by_stage))
    ]


def stage_cluster(plan: Plan, stage: int, conditions: Conditions) -> Cluster:
    """The cluster with the faults that affect one stage."""
    return _degraded(plan.cluster, plan.ranks_of(stage), conditions)


def _degraded(cluster: Cluster, ranks: range, conditions: Conditions) -> Cluster:
    """The cluster with the faults that affect a stage on these ranks."""
    slowest = [factor for rank, factor in conditions.slow if rank in ranks]
    if slowest:
        factors = slowest if len(slowest) == len(ranks) else [*slowest, 1.0]
        both = ScaleFactors(compute=max(factors), overhead=max(factors))
        cluster = replace(cluster, device=scaled_device(cluster.device, both))
    for lost in conditions.lost:
        if lost.rank is None or lost.rank in ranks:
            cluster = degraded(cluster, lost)
    return cluster


def degraded(cluster: Cluster, lost: LostLink) -> Cluster:
    """The cluster with one level slowed down, or replaced by the next outer level."""
    link = cluster.levels[lost.level]
    if lost.fraction < 1:
        changed = scaled_link(link, ScaleFactors(communication=1 / (1 - lost.fraction)))
    elif lost.level:
        outer = cluster.levels[lost.level - 1]
        changed = replace(outer, size=link.size)
    else:
        raise InfeasibleError(
            f"{link.name} is the outermost level of {cluster.name}: without it nothing joins its "
            f"{link.size} groups; a part of it can be lost, as in {link.name}=0.5"
        )
    levels = tuple(changed if i == lost.level else x for i, x in enumerate(cluster.levels))
    return replace(cluster, levels=levels)
