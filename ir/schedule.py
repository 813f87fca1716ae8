"""Pipeline schedules as data: which stage does what, in which order.

A table has one row per stage, a row one `(kind, micro_batch)` per slot: "F" forward, "B" backward.
The runtime executes the same table that the cost model simulates.
"""

from __future__ import annotations

from collections.abc import Callable

Slot = tuple[str, int]
Table = tuple[tuple[Slot, ...], ...]


def one_f_one_b(stages: int, micro_batches: int) -> Table:
    """1F1B (PipeDream-flush, Narayanan et al. 2021): stage s warms up with stages - 1 - s forwards,
    then alternates, so it never holds more than stages - s micro-batches."""
    rows = []
    for stage in range(stages):
        warm = min(stages - 1 - stage, micro_batches)
        row = [("F", i) for i in range(warm)]
        for i in range(micro_batches - warm):
            row += [("F", warm + i), ("B", i)]
        row += [("B", i) for i in range(micro_batches - warm, micro_batches)]
        rows.append(tuple(row))
    return tuple(rows)


def gpipe(stages: int, micro_batches: int) -> Table:
    """GPipe (Huang et al. 2019): all forwards, then all backwards."""
    row = [("F", i) for i in range(micro_batches)] + [("B", i) for i in range(micro_batches)]
    return tuple(tuple(row) for _ in range(stages))


SCHEDULES: dict[str, Callable[[int, int], Table]] = {"1f1b": one_f_one_b, "gpipe": gpipe}


def in_flight(table: Table, stage: int) -> int:
    """The most micro-batches whose activations a stage holds at once."""
    held = most = 0
    for kind, _ in table[stage]:
        held += 1 if kind == "F" else -1
        most = max(most, held)
    return most
