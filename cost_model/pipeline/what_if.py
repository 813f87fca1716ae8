"""A plan's step under changed conditions: slow ranks and lost links, simulated event by event.

    rank 3 slow ──▶ its stage waits for it ──▶ F and B of the stage longer ──▶ the table runs anew
    link lost   ──▶ what passes it is slower, or goes over the next level out

Ranks of a stage work in step, so a stage is as slow as its slowest rank and its worst link.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import InfeasibleError
from ...ir.plan.plan import Plan
from ..calibration.scale import Factors, scaled_device, scaled_link
from ..communication.stage_transfer import plan_hops
from ..explain.step_terms import stage_times
from .closed_form import simulated
from .simulate import Timeline


class Lost(msgspec.Struct, frozen=True):
    """`part` of a level's bandwidth is gone, for all ranks or for one; 1: all of it, and what passed
    there takes the next level out."""

    level: int
    part: float
    rank: int | None = None


class Conditions(msgspec.Struct, frozen=True):
    """`slow`: ranks, and how many times as long they compute. `lost`: links."""

    slow: tuple[tuple[int, float], ...] = ()
    lost: tuple[Lost, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """A step: the pipeline's timeline, then `sync_seconds` of every stage."""

    timeline: Timeline
    sync_seconds: tuple[float, ...]

    @property
    def step_seconds(self) -> float:
        """Priced as plans are: synchronisation follows the whole pipeline."""
        return self.timeline.makespan_seconds + max(self.sync_seconds)


def run_plan(plan: Plan, conditions: Conditions) -> Run:
    """One step of a plan; raises InfeasibleError where a lost link leaves no way."""
    count = len(plan.stages)
    clusters = [stage_cluster(plan, stage, conditions) for stage in range(count)]
    times = [stage_times(plan, s, c) for s, c in zip(plan.stages, clusters, strict=True)]
    busy = [
        (t.forward.value / plan.micro_batches, t.backward.value / plan.micro_batches) for t in times
    ]
    timeline = simulated(plan, busy, sends(plan, clusters))
    return Run(timeline, tuple(t.sync.value for t in times))


def sends(plan: Plan, clusters: Sequence[Cluster]) -> list[float]:
    """Seconds over the boundary after each stage, as its worse side has it."""
    seen = [[hop.seconds for hop in plan_hops(plan, c)] for c in clusters]
    return [max(seen[s][s], seen[(s + 1) % len(seen)][s]) for s in range(len(seen))]


def ranks_of(plan: Plan, stage: int) -> range:
    """The ranks that run a stage."""
    width = plan.mesh.size // len(plan.stages)
    return range(stage * width, (stage + 1) * width)


def stage_cluster(plan: Plan, stage: int, conditions: Conditions) -> Cluster:
    """The cluster as one stage meets it."""
    ranks, cluster = ranks_of(plan, stage), plan.cluster
    slowest = [factor for rank, factor in conditions.slow if rank in ranks]
    if slowest:
        factors = slowest if len(slowest) == len(ranks) else [*slowest, 1.0]
        both = Factors(compute=max(factors), overhead=max(factors))
        cluster = replace(cluster, device=scaled_device(cluster.device, both))
    for lost in conditions.lost:
        if lost.rank is None or lost.rank in ranks:
            cluster = without(cluster, lost)
    return cluster


def without(cluster: Cluster, lost: Lost) -> Cluster:
    """The cluster with a link of a level weakened, or with the next level out in its place."""
    link = cluster.levels[lost.level]
    if lost.part < 1:
        changed = scaled_link(link, Factors(communication=1 / (1 - lost.part)))
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
