"""Step of a plan whose stages are device groups: their pipeline event by event, then the sums of
gradients over groups that have the same calls.

The first group of a call adds up what the others send it, and sends them the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...ir.devices.cluster import Cluster, Link
from ...ir.plan.groups.schedule import Neighbours, group_rows, neighbours, tiles_of
from ...ir.plan.plan import Plan, Stage
from ...ir.plan.schedules.chunk_map import ScheduleStep
from ..communication.collective import send_seconds
from .simulate import ScheduleEvent, Task, TaskName, Timeline, run_tasks


class GroupsStep(NamedTuple):
    """The pipeline's timeline, and by group the seconds of synchronisation after it."""

    timeline: Timeline
    sync_seconds: tuple[float, ...]

    @property
    def step_seconds(self) -> float:
        return self.timeline.makespan_seconds + max(self.sync_seconds)


class DevicesOfPart(Protocol):
    """Neighbouring devices of a part of a cluster."""

    @property
    def part(self) -> int: ...

    @property
    def first_device(self) -> int: ...

    @property
    def devices(self) -> int: ...


def groups_step(plan: Plan, busy: Sequence[tuple[float, float]] | None = None) -> GroupsStep:
    """The simulated step; `busy` are seconds of forward and backward of every group, per micro-batch,
    where they are not those of its stage."""
    times = busy or [(s.forward_seconds, s.backward_seconds) for s in plan.stages]
    total_seconds = gradient_sum_seconds(plan.cluster, plan.groups, plan.stages)
    sync = [
        stage.sync_seconds + added for stage, added in zip(plan.stages, total_seconds, strict=True)
    ]
    return GroupsStep(simulate_groups(plan, times), tuple(sync))


def link_between(cluster: Cluster, one: DevicesOfPart, other: DevicesOfPart) -> Link:
    """The slowest link between the devices of two groups."""
    if one.part != other.part:
        return cluster.link_of_parts(one.part, other.part)
    part = cluster.parts[one.part] if cluster.parts else cluster
    end = max(one.first_device + one.devices, other.first_device + other.devices)
    return part.link_between(min(one.first_device, other.first_device), end - 1)


def group_send_seconds(
    cluster: Cluster, one: DevicesOfPart, other: DevicesOfPart, size_bytes: int
) -> float:
    """Seconds to send what a micro-batch leaves at every device of a group to the next group."""
    narrowing = max(1.0, one.devices / other.devices)
    return send_seconds(round(size_bytes * narrowing), link_between(cluster, one, other))


def gradient_sum_seconds(
    cluster: Cluster, groups: Sequence[DevicesOfPart], stages: Sequence[Stage]
) -> list[float]:
    """Seconds in which every group adds up its gradients with those of other groups: to the first
    group of its calls and back, and where it is the first, of all others."""
    seconds = [0.0] * len(stages)
    for one, other in sorted(summing_pairs(stages)):
        link = link_between(cluster, groups[one], groups[other])
        seconds[one] += 2 * send_seconds(shared_bytes(stages[one], stages[other]), link)
    return seconds


def summing_pairs(stages: Sequence[Stage]) -> set[tuple[int, int]]:
    """Groups that exchange gradients, both ways round."""
    pairs: set[tuple[int, int]] = set()
    for call in {stage.model_chunks[0][0] for stage in stages}:
        first, *others = [n for n, stage in enumerate(stages) if stage.contains(call)]
        pairs |= {pair for other in others for pair in ((first, other), (other, first))}
    return pairs


def shared_bytes(one: Stage, other: Stage) -> int:
    """Bytes per device of trained weights that two groups both have, in proportion to their calls."""
    (a, b), (c, d) = one.model_chunks[0], other.model_chunks[0]
    trained = sum(share.bytes.trained_bytes for share in one.bytes_by_strategy)
    return trained * max(0, min(b, d) - max(a, c)) // (b - a)


def simulate_groups(plan: Plan, busy: Sequence[tuple[float, float]]) -> Timeline:
    """The pipelines of all groups; transfers between two groups queue on the link between them."""
    tiles = tiles_of(plan)
    rows, near = group_rows(tiles), neighbours(tiles)
    resources: dict[tuple[str, int], list[Task]] = {}
    for g, row in enumerate(rows):
        for step in row:
            name = ("stage", g, step)
            needs = [_arrival(near, g, step), *_own_need(g, step)]
            seconds = busy[g][step[0] == "B"]
            task = Task(name, seconds, tuple(need for need in needs if need is not None))
            resources.setdefault(("stage", g), []).append(task)
            target = (near[g].after if step[0] == "F" else near[g].before).get(step[2])
            if target is not None:
                one, other = (g, target) if step[0] == "F" else (target, g)
                ends, size = (plan.groups[one], plan.groups[other]), plan.stages[one].transfer_bytes
                seconds = group_send_seconds(plan.cluster, *ends, size)
                sent = Task((step[0], g, step), seconds, (name,))
                resources.setdefault((f"{step[0]} to {target} from", g), []).append(sent)
    spans = run_tasks(resources)
    events = tuple(
        ScheduleEvent(g, step[0], step[2], *spans["stage", g, step])
        for g, row in enumerate(rows)
        for step in row
    )
    return Timeline(len(rows), events, max((e.end_seconds for e in events), default=0.0))


def _arrival(near: Sequence[Neighbours], group: int, step: ScheduleStep) -> TaskName | None:
    """The transfer that a step waits for."""
    kind, _, number = step
    source = (near[group].before if kind == "F" else near[group].after).get(number)
    return None if source is None else (kind, source, step)


def _own_need(group: int, step: ScheduleStep) -> list[TaskName]:
    return [("stage", group, ("F", 0, step[2]))] if step[0] == "B" else []
