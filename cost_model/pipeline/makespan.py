"""Seconds of all steps of a schedule, without their timeline: the order of its tasks is found once.

Tasks of a schedule wait for the same tasks whatever they cost, the one before them on their resource
among those, so their ends follow in one pass over any order in which each comes after what it waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ...ir.plan.schedules.chunk_map import ChunkMap, ScheduleStep, stage_dependencies
from ...ir.plan.schedules.registry import build_rows, chunk_map
from ...ir.plan.schedules.table import verify_no_deadlock
from .simulate import StageSeconds


class TaskOrder(NamedTuple):
    """Tasks of a schedule, each after all that it waits for. `durations`: (stage, chunk, kind, whether
    it sends); of every task the number of its duration, then those of the tasks that it waits for, which
    count from 1: 0 is the beginning."""

    durations: tuple[tuple[int, int, str, bool], ...]
    tasks: tuple[tuple[int, tuple[int, ...]], ...]

    def makespan_seconds(self, costs: Sequence[Sequence[StageSeconds]]) -> float:
        """End of the last task; `costs` by stage and chunk."""
        seconds = [
            costs[stage][chunk].transfer.get(kind, 0.0)
            if sends
            else costs[stage][chunk].compute[kind]
            for stage, chunk, kind, sends in self.durations
        ]
        ends = [0.0]
        for duration, after in self.tasks:
            start = 0.0
            for task in after:
                if ends[task] > start:
                    start = ends[task]
            ends.append(start + seconds[duration])
        return max(ends)


@lru_cache(maxsize=256)
def task_order(schedule: str, stages: int, micro_batches: int, chunks: int) -> TaskOrder:
    """The tasks of a schedule: steps, each after those that it needs and the one before it on its stage,
    and after a step the transfer of its result, which waits for the one before on its link. Raises
    UsageError when it deadlocks."""
    rows = build_rows(schedule, stages, micro_batches, chunks)
    placed = chunk_map(schedule, stages, chunks)
    numbering = _Numbering(placed)
    verify_no_deadlock(rows, placed.needs_of(rows), numbering.add)
    return TaskOrder(tuple(numbering.durations), tuple(numbering.tasks))


class _Numbering:
    """Tasks by number, in an order in which each comes after what it waits for. `arrived`: by stage and
    step the task that gives a step's result to those that need it, there and on the next stage."""

    def __init__(self, placed: ChunkMap) -> None:
        self.placed = placed
        self.durations: dict[tuple[int, int, str, bool], int] = {}
        self.tasks: list[tuple[int, tuple[int, ...]]] = []
        self.done: dict[tuple[int, ScheduleStep], int] = {}
        self.sent: dict[tuple[int, ScheduleStep], int] = {}
        self.last: dict[tuple[int, str], int] = {}

    def add(self, step: ScheduleStep, stage: int) -> None:
        """Number a step, and the transfer of what it gives."""
        kind, chunk, _ = step
        near = (self.done[stage, need] for need in stage_dependencies(step))
        far = (self.sent[s] for s in self.placed.sources(stage, step) if s in self.sent)
        task = self.task((stage, chunk, kind, False), "stage", (*near, *far))
        self.done[stage, step] = self.sent[stage, step] = task
        direction = "F" if kind == "F" else "B"
        receiver = self.placed.neighbour(stage, step, 1 if kind == "F" else -1)
        if kind != "W" and receiver is not None and receiver[0] != stage:
            transfer = self.task((stage, chunk, direction, True), direction, (task,))
            self.sent[stage, step] = transfer

    def task(
        self, duration: tuple[int, int, str, bool], resource: str, after: tuple[int, ...]
    ) -> int:
        """The number of a new task, which also waits for the last one on its resource."""
        place = duration[0], resource
        before = (self.last[place],) if place in self.last else ()
        number = self.durations.setdefault(duration, len(self.durations))
        self.tasks.append((number, tuple(dict.fromkeys((*after, *before)))))
        self.last[place] = len(self.tasks)
        return len(self.tasks)
