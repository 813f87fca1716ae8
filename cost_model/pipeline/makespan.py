"""Seconds of all steps of a schedule, without their timeline: the order of its tasks is found once.

Tasks of a schedule wait for the same tasks whatever they cost, the one before them on their resource
among those, so their ends follow in one pass over any order in which each comes after what it waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ...ir.plan.schedules.chunk_map import ChunkMap, ScheduleStep
from ...ir.plan.schedules.registry import build_rows, chunk_map
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
    and after a step the transfer of its result, which waits for the one before on its link."""
    rows = build_rows(schedule, stages, micro_batches, chunks)
    numbering = _Numbering(chunk_map(schedule, stages, chunks), micro_batches)
    at, moved = [0] * stages, True
    while moved:  # every stage goes on while it can; rows that are built do not deadlock
        moved = False
        for stage, row in enumerate(rows):
            first = at[stage]
            while at[stage] < len(row) and numbering.add(row[at[stage]], stage):
                at[stage] += 1
            moved = moved or at[stage] > first
    return TaskOrder(tuple(numbering.durations), tuple(numbering.tasks))


class _Numbering:
    """Tasks by number, in an order in which each comes after what it waits for.

    `forward`, `backward`: by chunk of the model and micro-batch the task that gives a step's result on
    its stage, `forward_sent`, `backward_sent` to the chunk that waits for it; 0 while there is none.
    """

    def __init__(self, placed: ChunkMap, micro_batches: int) -> None:
        self.placed, self.micro_batches = placed, micro_batches
        self.durations: dict[tuple[int, int, str, bool], int] = {}
        self.tasks: list[tuple[int, tuple[int, ...]]] = []
        self.last: dict[tuple[int, str], int] = {}
        slots = placed.total * micro_batches
        self.forward, self.forward_sent = [0] * slots, [0] * slots
        self.backward, self.backward_sent = [0] * slots, [0] * slots
        self.numbers = [placed.numbers(stage) for stage in range(placed.stages)]
        self.stages_by_chunk = [
            [placed.place(number, chunk).stage for number in range(placed.total)]
            for chunk in range(placed.chunks)
        ]

    def add(self, step: ScheduleStep, stage: int) -> bool:
        """Number a step, and the transfer of what it gives; False while it has to wait."""
        kind, chunk, micro_batch = step
        number = self.numbers[stage][chunk]
        slot = number * self.micro_batches + micro_batch
        if kind == "W":
            waits = (self.backward[slot],)
        elif kind == "F":
            waits = (self.forward_sent[slot - self.micro_batches],) if number else ()
        else:
            waits = (self.forward[slot],)
            if number + 1 < len(self.stages_by_chunk[chunk]):
                waits = (*waits, self.backward_sent[slot + self.micro_batches])
        if not all(waits):
            return False
        task = self.task((stage, chunk, kind, False), "stage", waits)
        if kind != "W":
            done, sent = (
                (self.forward, self.forward_sent)
                if kind == "F"
                else (self.backward, self.backward_sent)
            )
            done[slot] = sent[slot] = task
            receiver = number + (1 if kind == "F" else -1)
            stages = self.stages_by_chunk[chunk]
            if 0 <= receiver < len(stages) and stages[receiver] != stage:
                direction = "F" if kind == "F" else "B"
                sent[slot] = self.task((stage, chunk, direction, True), direction, (task,))
        return True

    def task(
        self, duration: tuple[int, int, str, bool], resource: str, after: tuple[int, ...]
    ) -> int:
        """The number of a new task, which also waits for the last one on its resource."""
        place = duration[0], resource
        before = self.last.get(place, 0)
        number = self.durations.setdefault(duration, len(self.durations))
        self.tasks.append((number, after if before in after or not before else (*after, before)))
        self.last[place] = len(self.tasks)
        return len(self.tasks)
