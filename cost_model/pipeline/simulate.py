"""Event simulation: tasks on resources that run one task at a time, in a given order.

    stage 0   F0 F1 F2 .. .. B0 F3 B1 ..        F1 on stage 1 waits for the transfer of F1's result,
    stage 1   .. F0 F1 F2 B0 F3 B1 ..           which waits for F1 on stage 0

Any schedule is a list of tasks per resource; a pipeline is one resource per stage and one per
boundary and direction: transfers queue on their link while stages compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from ...ir.errors import UsageError
from ...ir.plan.schedules.chunk_map import ChunkMap, ScheduleRows, ScheduleStep, stage_dependencies
from ...ir.plan.schedules.interleave import as_rows, chunk_count
from ...ir.plan.schedules.table import ScheduleTable

TaskName = tuple[str, int, ScheduleStep]


class Task(msgspec.Struct, frozen=True):
    """Task of `seconds` on its resource, started when all tasks in `after` have ended."""

    name: TaskName
    seconds: float
    after: tuple[TaskName, ...] = ()


class ScheduleEvent(msgspec.Struct, frozen=True):
    """One executed step of a stage's row; `kind` is "F", "B", or "I" and "W" for B's parts."""

    stage: int
    kind: str
    micro_batch: int
    start_seconds: float
    end_seconds: float
    chunk: int = 0

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


class Timeline(msgspec.Struct, frozen=True):
    """Events by stage and then by time, and the makespan."""

    stages: int
    events: tuple[ScheduleEvent, ...]
    makespan_seconds: float

    @property
    def busy_seconds(self) -> tuple[float, ...]:
        busy = [0.0] * self.stages
        for event in self.events:
            busy[event.stage] += event.seconds
        return tuple(busy)

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Idle fraction of the makespan per stage."""
        if not self.makespan_seconds:
            return (0.0,) * self.stages
        return tuple(1 - busy / self.makespan_seconds for busy in self.busy_seconds)

    @property
    def bubble(self) -> float:
        """Mean idle fraction of all stages."""
        return sum(self.bubbles) / self.stages


class StageSeconds(msgspec.Struct, frozen=True):
    """Seconds of one micro-batch on a stage by kind of step, and to send each kind's result."""

    compute: Mapping[str, float]
    transfer: Mapping[str, float] = {}


def stage_seconds(
    forward: float, backward: float, send_forward: float = 0.0, send_backward: float = 0.0
) -> StageSeconds:
    """Stage with plain forward and backward; sends go to the next and to the previous stage."""
    return StageSeconds({"F": forward, "B": backward}, {"F": send_forward, "B": send_backward})


def simulate(table: ScheduleTable, costs: Sequence[StageSeconds]) -> Timeline:
    """Run a pipeline schedule; raises UsageError when the table deadlocks."""
    return simulate_rows(as_rows(table), [(cost,) for cost in costs])


def simulate_rows(
    rows: ScheduleRows, costs: Sequence[Sequence[StageSeconds]], chunks: ChunkMap | None = None
) -> Timeline:
    """Run a schedule of chunks, `costs` by stage and chunk; raises UsageError when it deadlocks."""
    if len(costs) != len(rows):
        raise UsageError(f"{len(costs)} stages are priced, the schedule has {len(rows)}")
    chunks = chunks or ChunkMap(len(rows), chunk_count(rows))
    spans = run_tasks(pipeline_tasks(rows, costs, chunks))
    events = tuple(
        ScheduleEvent(stage, kind, number, *spans["stage", stage, (kind, chunk, number)], chunk)
        for stage, row in enumerate(rows)
        for kind, chunk, number in row
    )
    return Timeline(len(rows), events, max((e.end_seconds for e in events), default=0.0))


def pipeline_tasks(
    rows: ScheduleRows, costs: Sequence[Sequence[StageSeconds]], chunks: ChunkMap
) -> dict[tuple[str, int], list[Task]]:
    """Tasks by resource: `("stage", s)`, and `("F", s)`, `("B", s)` for the links out of stage
    s."""
    resources: dict[tuple[str, int], list[Task]] = {}
    sent: dict[tuple[int, ScheduleStep], TaskName] = {}
    for stage, row in enumerate(rows):
        for step in row:
            name: TaskName = ("stage", stage, step)
            direction = "F" if step[0] == "F" else "B"
            receiver = chunks.neighbour(stage, step, 1 if direction == "F" else -1)
            sent[stage, step] = name
            if step[0] != "W" and receiver is not None and receiver[0] != stage:
                sent[stage, step] = (direction, stage, step)
                seconds = costs[stage][step[1]].transfer.get(direction, 0.0)
                send = Task(sent[stage, step], seconds, (name,))
                resources.setdefault((direction, stage), []).append(send)
    for stage, row in enumerate(rows):
        for step in row:
            near = [("stage", stage, need) for need in stage_dependencies(step)]
            far = [sent[s] for s in chunks.sources(stage, step) if s in sent]
            seconds = costs[stage][step[1]].compute[step[0]]
            task = Task(("stage", stage, step), seconds, (*near, *far))
            resources.setdefault(("stage", stage), []).append(task)
    return resources


def run_tasks(
    resources: Mapping[tuple[str, int], Sequence[Task]],
) -> dict[TaskName, tuple[float, float]]:
    """(start, end) of every task; each resource does its tasks one at a time, in their order.

    Raises UsageError on deadlock.
    """
    spans: dict[TaskName, tuple[float, float]] = {}
    at = dict.fromkeys(resources, 0)
    free = dict.fromkeys(resources, 0.0)
    waiting: dict[TaskName, list[tuple[str, int]]] = {}
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
        kind, place, step = stuck[0]
        raise UsageError(f"the schedule deadlocks: {kind} {place} waits for ever at {step}")
    return spans
