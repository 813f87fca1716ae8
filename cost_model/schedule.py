"""Event simulation: tasks on resources that do one thing at a time, in a given order.

    stage 0   F0 F1 F2 .. .. B0 F3 B1 ..        F1 on stage 1 waits for the transfer of F1's result,
    stage 1   .. F0 F1 F2 B0 F3 B1 ..           which waits for F1 on stage 0

Any schedule is a list of tasks per resource; a pipeline is one resource per stage and one per
boundary and direction, for transfers queue on their link while the stages go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from ..ir.errors import UsageError
from ..ir.schedule import Slot, Table, needs, sender

Name = tuple[str, int, Slot]


class Task(msgspec.Struct, frozen=True):
    """`seconds` of work on its resource, begun when all tasks in `after` have ended."""

    name: Name
    seconds: float
    after: tuple[Name, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """One slot of a stage's row, when it ran; `kind` is "F" or "B"."""

    stage: int
    kind: str
    micro_batch: int
    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


class Timeline(msgspec.Struct, frozen=True):
    """What ran when: events by stage and then by time, and how long the whole took."""

    stages: int
    events: tuple[Event, ...]
    makespan_seconds: float

    @property
    def busy_seconds(self) -> tuple[float, ...]:
        busy = [0.0] * self.stages
        for event in self.events:
            busy[event.stage] += event.seconds
        return tuple(busy)

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Per stage the part of the makespan in which it does nothing."""
        if not self.makespan_seconds:
            return (0.0,) * self.stages
        return tuple(1 - busy / self.makespan_seconds for busy in self.busy_seconds)

    @property
    def bubble(self) -> float:
        """The part of all stages' time in which they do nothing."""
        return sum(self.bubbles) / self.stages


class StageSeconds(msgspec.Struct, frozen=True):
    """What one micro-batch costs a stage, by kind of slot, and to send each kind's result on."""

    compute: Mapping[str, float]
    transfer: Mapping[str, float] = {}


def stage_seconds(
    forward: float, backward: float, send_forward: float = 0.0, send_backward: float = 0.0
) -> StageSeconds:
    """A stage with plain forwards and backwards; sends go to the next and to the previous stage."""
    return StageSeconds({"F": forward, "B": backward}, {"F": send_forward, "B": send_backward})


def simulate(table: Table, costs: Sequence[StageSeconds]) -> Timeline:
    """Run a pipeline schedule; raises UsageError when the table deadlocks."""
    if len(costs) != len(table):
        raise UsageError(f"{len(costs)} stages are priced, the schedule has {len(table)}")
    spans = run(_tasks(table, costs))
    events = tuple(
        Event(stage, slot[0], slot[1], *spans["stage", stage, slot])
        for stage, row in enumerate(table)
        for slot in row
    )
    return Timeline(len(table), events, max((e.end_seconds for e in events), default=0.0))


def _tasks(table: Table, costs: Sequence[StageSeconds]) -> dict[tuple[str, int], list[Task]]:
    """Resources: `("stage", s)`, and `("F", s)`, `("B", s)` for the links out of stage s."""
    stages = len(table)
    resources: dict[tuple[str, int], list[Task]] = {}
    for stage, row in enumerate(table):
        for slot in row:
            after: list[Name] = []
            for where, need in needs(slot, stage, stages):
                after.append(("stage" if where == stage else need[0], where, need))
            name = ("stage", stage, slot)
            task = Task(name, costs[stage].compute[slot[0]], tuple(after))
            resources.setdefault(("stage", stage), []).append(task)
            kind = slot[0]
            onward = stage + 1 if kind == "F" else stage - 1
            if 0 <= onward < stages and sender(slot, onward, stages) == stage:
                send = Task((kind, stage, slot), costs[stage].transfer.get(kind, 0.0), (name,))
                resources.setdefault((kind, stage), []).append(send)
    return resources


def run(resources: Mapping[tuple[str, int], Sequence[Task]]) -> dict[Name, tuple[float, float]]:
    """(start, end) of every task; each resource does its tasks one at a time, in their order.

    Raises UsageError when tasks wait for each other for ever.
    """
    spans: dict[Name, tuple[float, float]] = {}
    at = dict.fromkeys(resources, 0)
    free = dict.fromkeys(resources, 0.0)
    waiting: dict[Name, list[tuple[str, int]]] = {}
    ready = deque(resources)
    while ready:
        resource = ready.popleft()
        tasks = resources[resource]
        while at[resource] < len(tasks):
            task = tasks[at[resource]]
            missing = next((name for name in task.after if name not in spans), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(resource)
                break
            start = max([free[resource], *(spans[name][1] for name in task.after)])
            free[resource] = start + task.seconds
            spans[task.name] = (start, free[resource])
            at[resource] += 1
            ready.extend(waiting.pop(task.name, ()))
    stuck = [tasks[at[r]].name for r, tasks in resources.items() if at[r] < len(tasks)]
    if stuck:
        kind, place, slot = stuck[0]
        raise UsageError(f"the schedule deadlocks: {kind} {place} waits for ever at {slot}")
    return spans
