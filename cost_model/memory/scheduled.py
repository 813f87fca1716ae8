"""Micro-batches in flight on a stage, counted step by step in any schedule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ir.plan.schedules.chunk_map import ScheduleRows
from ...ir.plan.schedules.registry import build_rows
from ...ir.plan.workload import StepKind, WaitingBeside

ROUNDS = 4  # of as many micro-batches as stages: by then, what a stage holds repeats


class ChunkBytes(NamedTuple):
    """What a model chunk holds for one micro-batch: between forward and backward, and, where backward
    runs in two parts, between them."""

    saved: float
    waiting: float = 0.0


def scheduled_in_flight(
    schedule: str, stages: int, number: int, micro_batches: int, chunks: Sequence[ChunkBytes]
) -> float:
    """Peak micro-batches in flight on stage `number`: the most bytes that its chunks hold at once, over
    those that one micro-batch saves in all of them."""
    one = sum(chunk.saved for chunk in chunks)
    if not one:
        return 0.0
    shares = tuple(ChunkBytes(chunk.saved / one, chunk.waiting / one) for chunk in chunks)
    return _peak(schedule, stages, number, _enough(schedule, stages, micro_batches), shares)


@lru_cache(maxsize=4096)
def _peak(
    schedule: str, stages: int, number: int, micro_batches: int, shares: tuple[ChunkBytes, ...]
) -> float:
    counts = _counts(schedule, stages, number, micro_batches, len(shares))
    amounts = np.array([*(chunk.saved for chunk in shares), *(chunk.waiting for chunk in shares)])
    return max(float((at @ amounts).max()) for at in counts.values())


def waiting_beside(
    schedule: str, stages: int, number: int, micro_batches: int, chunks: Sequence[ChunkBytes]
) -> tuple[WaitingBeside, ...]:
    """What waits on stage `number` beside a micro-batch that runs, for each kind of step of each model
    chunk."""
    saved, parted = (
        max(sum(getattr(chunk, name) for chunk in chunks), 1.0) for name in ("saved", "waiting")
    )
    shares = tuple(ChunkBytes(chunk.saved / saved, chunk.waiting / parted) for chunk in chunks)
    return _beside(schedule, stages, number, _enough(schedule, stages, micro_batches), shares)


@lru_cache(maxsize=4096)
def _beside(
    schedule: str, stages: int, number: int, micro_batches: int, shares: tuple[ChunkBytes, ...]
) -> tuple[WaitingBeside, ...]:
    counts = _counts(schedule, stages, number, micro_batches, len(shares))
    saved, parted = (np.array([getattr(c, name) for c in shares]) for name in ("saved", "waiting"))
    cases = dict.fromkeys(
        WaitingBeside(
            step,
            max(0.0, float(row[: len(shares)] @ saved - saved[chunk] * (step != "W"))),
            max(0.0, float(row[len(shares) :] @ parted - parted[chunk] * (step == "W"))),
            reduced,
            chunk,
        )
        for (step, reduced, chunk), rows in counts.items()
        for row in rows
    )
    return tuple(
        case
        for case in cases
        if not any(other != case and other.holds_all_of(case) for other in cases)
    )


def _enough(schedule: str, stages: int, micro_batches: int) -> int:
    """As many micro-batches as it takes to see all that a stage holds."""
    return micro_batches if schedule == "gpipe" else min(micro_batches, ROUNDS * stages)


@lru_cache(maxsize=1024)
def _counts(
    schedule: str, stages: int, number: int, micro_batches: int, chunks: int
) -> dict[tuple[StepKind, bool, int], NDArray[np.float64]]:
    """`live_counts` by the kind of the step, whether gradients of an earlier one exist, and chunk; none
    that another one exceeds."""
    rows = build_rows(schedule, stages, micro_batches, chunks)
    counts = live_counts(rows, number, chunks)
    first = next(at for at, (kind, _, _) in enumerate(rows[number]) if kind in "BW")
    groups: dict[tuple[StepKind, bool, int], list[int]] = {}
    for at, (kind, chunk, _) in enumerate(rows[number]):
        step = "F" if kind == "F" else "W" if kind == "W" else "B"
        groups.setdefault((step, at > first, chunk), []).append(at)
    return _undominated({g: np.unique(counts[steps], axis=0) for g, steps in groups.items()})


def _undominated(
    groups: dict[tuple[StepKind, bool, int], NDArray[np.float64]],
) -> dict[tuple[StepKind, bool, int], NDArray[np.float64]]:
    """The counts without those that have no more of any chunk than others beside the same kind of step:
    they hold no more bytes, whatever a chunk holds."""
    most: dict[tuple[StepKind, bool, int], NDArray[np.float64]] = {}
    for (step, reduced, chunk), rows in groups.items():
        remaining = rows[~_dominated(rows, rows, strictly=True)]
        if not reduced and (step, True, chunk) in groups:
            remaining = remaining[~_dominated(remaining, groups[step, True, chunk], strictly=False)]
        if len(remaining):
            most[step, reduced, chunk] = remaining
    return most


def _dominated(
    rows: NDArray[np.float64], others: NDArray[np.float64], strictly: bool
) -> NDArray[np.bool_]:
    """Which rows have in no place more than one of the others has, and `strictly` somewhere less."""
    at_most = (rows[:, None] <= others[None]).all(axis=2)
    if strictly:
        at_most &= (rows[:, None] != others[None]).any(axis=2)
    return np.logical_or.reduce(at_most, axis=1)


def live_counts(rows: ScheduleRows, stage: int, chunks: int) -> NDArray[np.float64]:
    """`[steps, 2 * chunks]`: while each step of a stage runs, per chunk the micro-batches between
    forward and backward, then those between the two parts of backward."""
    now, during = [0] * (2 * chunks), list[list[int]]()
    for kind, chunk, _ in rows[stage]:
        now[chunk] += kind == "F"
        during.append(list(now))
        now[chunk] -= kind in "BI"
        now[chunks + chunk] += {"I": 1, "W": -1}.get(kind, 0)
    return np.array(during, dtype=np.float64)
