"""Pipeline schedules as data: the order in which every stage runs its forwards and backwards.

A table has one row per stage, a row one `(kind, micro_batch)` per slot: "F" forward, "B" backward.
The runtime executes the same table that the cost model simulates.

    1F1B, 2 stages, 3 micro-batches     stage 0   F0 F1 B0 F2 B1 B2
                                        stage 1   F0 B0 F1 B1 F2 B2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ...errors import UsageError

Slot = tuple[str, int]
ScheduleTable = tuple[tuple[Slot, ...], ...]


def one_f_one_b(stages: int, micro_batches: int) -> ScheduleTable:
    """1F1B (PipeDream-flush, Narayanan et al. 2021): stage s warms up with stages - 1 - s forwards,
    then alternates, so that at most stages - s micro-batches are in flight."""
    rows: list[tuple[Slot, ...]] = []
    for stage in range(stages):
        warm = min(stages - 1 - stage, micro_batches)
        row = [("F", i) for i in range(warm)]
        for i in range(micro_batches - warm):
            row += [("F", warm + i), ("B", i)]
        row += [("B", i) for i in range(micro_batches - warm, micro_batches)]
        rows.append(tuple(row))
    return tuple(rows)


def gpipe(stages: int, micro_batches: int) -> ScheduleTable:
    """GPipe (Huang et al. 2019): all forwards, then all backwards."""
    row = [("F", i) for i in range(micro_batches)] + [("B", i) for i in range(micro_batches)]
    return tuple(tuple(row) for _ in range(stages))


Done = TypeVar("Done", bound=tuple[object, ...])


def verify_no_deadlock(
    rows: Sequence[Sequence[Done]],
    needs: Callable[[Done, int], Iterator[tuple[int, Done]]],
    visit: Callable[[Done, int], None] = lambda step, stage: None,
) -> None:
    """Every stage goes on while it can, and shows `visit` each step after all that it needs; raises
    UsageError when all are stuck."""
    at, done = [0] * len(rows), set[tuple[int, Done]]()
    moved = True
    while moved:
        moved = False
        for stage, row in enumerate(rows):
            while at[stage] < len(row) and all(n in done for n in needs(row[at[stage]], stage)):
                visit(row[at[stage]], stage)
                done.add((stage, row[at[stage]]))
                at[stage] += 1
                moved = True
    for stage, row in enumerate(rows):
        if at[stage] < len(row):
            step = "".join(map(str, row[at[stage]]))
            raise UsageError(f"schedule: stage {stage} waits for ever before {step}")
