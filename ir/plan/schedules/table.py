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


def peak_in_flight(table: ScheduleTable, stage: int) -> int:
    """Peak number of micro-batches whose activations a stage holds."""
    count = peak = 0
    for kind, _ in table[stage]:
        count += 1 if kind == "F" else -1
        peak = max(peak, count)
    return peak


def sender(slot: Slot, stage: int, stages: int) -> int | None:
    """The stage that sends what this slot receives; None when it receives nothing."""
    neighbour = stage - 1 if slot[0] == "F" else stage + 1
    return neighbour if 0 <= neighbour < stages else None


def dependencies(slot: Slot, stage: int, stages: int) -> Iterator[tuple[int, Slot]]:
    """The (stage, slot) pairs that must end before this slot begins."""
    kind, micro_batch = slot
    neighbour = sender(slot, stage, stages)
    if neighbour is not None:
        yield neighbour, slot
    if kind == "B":
        yield stage, ("F", micro_batch)


def verify_schedule(table: ScheduleTable) -> None:
    """Raises UsageError unless the table can run: every stage does each forward and backward once,
    neighbours send and receive in one order, and no stages wait for each other for ever."""
    if not table or not table[0]:
        raise UsageError("schedule: no stages or no micro-batches")
    micro_batches = len(table[0]) // 2
    expected = {(kind, i) for kind in "FB" for i in range(micro_batches)}
    for stage, row in enumerate(table):
        if set(row) != expected or len(row) != len(expected):
            raise UsageError(
                f"schedule: stage {stage} does not do each of {micro_batches} micro-batches "
                "forward and backward exactly once"
            )
    for kind in "FB":
        orders = {tuple(slot for slot in row if slot[0] == kind) for row in table}
        if len(orders) > 1:
            raise UsageError(f"schedule: stages do their {kind} slots in different orders")
    verify_no_deadlock(table, lambda slot, stage: dependencies(slot, stage, len(table)))


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
