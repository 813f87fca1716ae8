"""Step of a plan whose stages are device groups: their pipeline event by event, then the sums of
gradients over groups that have the same calls.

The first group of a call adds up what the others send it, and sends them the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.devices.cluster import Link
from ...ir.plan.groups.schedule import Neighbours, group_rows, neighbours, tiles_of
from ...ir.plan.plan import Plan
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


def groups_step(plan: Plan, busy: Sequence[tuple[float, float]] | None = None) -> GroupsStep:
    """The simulated step; `busy` are seconds of forward and backward of every group, per micro-batch,
    where they are not those of its stage."""
    times = busy or [(s.forward_seconds, s.backward_seconds) for s in plan.stages]
    sync = [s.sync_seconds + gradient_sum_seconds(plan, n) for n, s in enumerate(plan.stages)]
    return GroupsStep(simulate_groups(plan, times), tuple(sync))


def link_between(plan: Plan, one: int, other: int) -> Link:
    """The slowest link between the devices of two groups."""
    cluster, first, second = plan.cluster, plan.groups[one], plan.groups[other]
    if first.part != second.part:
        return cluster.link_of_parts(first.part, second.part)
    part = cluster.parts[first.part] if cluster.parts else cluster
    end = max(first.first_device + first.devices, second.first_device + second.devices)
    return part.link_between(min(first.first_device, second.first_device), end - 1)


def group_send_seconds(plan: Plan, one: int, other: int) -> float:
    """Seconds to send a micro-batch's values from a group to the one that runs the next calls."""
    narrowing = max(1.0, plan.groups[one].devices / plan.groups[other].devices)
    amount = round(plan.stages[one].transfer_bytes * narrowing)
    return send_seconds(amount, link_between(plan, one, other))


def gradient_sum_seconds(plan: Plan, number: int) -> float:
    """Seconds in which a group adds up its gradients with those of other groups: to the first group of
    its calls and back, and where it is the first, of all others."""
    return sum(
        2 * send_seconds(shared_bytes(plan, number, other), link_between(plan, number, other))
        for other in range(len(plan.groups))
        if other != number and (number, other) in summing_pairs(plan)
    )


def summing_pairs(plan: Plan) -> set[tuple[int, int]]:
    """Groups that exchange gradients, both ways round."""
    pairs: set[tuple[int, int]] = set()
    for call in {stage.model_chunks[0][0] for stage in plan.stages}:
        first, *others = [n for n, stage in enumerate(plan.stages) if stage.contains(call)]
        pairs |= {pair for other in others for pair in ((first, other), (other, first))}
    return pairs


def shared_bytes(plan: Plan, one: int, other: int) -> int:
    """Bytes per device of trained weights that two groups both have, in proportion to their calls."""
    (a, b), (c, d) = plan.stages[one].model_chunks[0], plan.stages[other].model_chunks[0]
    trained = sum(share.bytes.trained_bytes for share in plan.stages[one].bytes_by_strategy)
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
                ends = (g, target) if step[0] == "F" else (target, g)
                sent = Task((step[0], g, step), group_send_seconds(plan, *ends), (name,))
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
