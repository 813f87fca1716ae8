"""Seconds of all steps of a schedule, without their timeline: the order of its tasks is found once.

Tasks of a schedule wait for the same tasks whatever they cost, the one before them on their resource
among those, so their ends follow in one pass over any order in which each comes after what it waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from ...ir.plan.schedules.registry import build_rows, chunk_map
from .simulate import StageSeconds, pipeline_tasks, run_tasks


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
    """The tasks of a schedule. Raises UsageError when it deadlocks."""
    free = StageSeconds(dict.fromkeys("FBIW", 0.0))
    rows = build_rows(schedule, stages, micro_batches, chunks)
    placed = chunk_map(schedule, stages, chunks)
    resources = pipeline_tasks(rows, [[free] * chunks] * stages, placed)
    before = {
        task.name: last.name for tasks in resources.values() for last, task in pairwise(tasks)
    }
    waits = {task.name: task.after for tasks in resources.values() for task in tasks}
    numbers = {name: number for number, name in enumerate(run_tasks(resources), start=1)}
    durations: dict[tuple[int, int, str, bool], int] = {}
    tasks: list[tuple[int, tuple[int, ...]]] = []
    for name in numbers:
        place, stage, (kind, chunk, _) = name
        sends = place != "stage"
        duration = (stage, chunk, place if sends else kind, sends)
        after = dict.fromkeys((*waits[name], *([before[name]] if name in before else ())))
        tasks.append(
            (durations.setdefault(duration, len(durations)), tuple(numbers[n] for n in after))
        )
    return TaskOrder(tuple(durations), tuple(tasks))
