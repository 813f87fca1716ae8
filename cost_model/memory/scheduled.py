"""Micro-batches in flight on a stage, counted step by step in any schedule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ir.plan.schedules.chunk_map import ScheduleRows
from ...ir.plan.schedules.registry import build_rows

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
    if schedule != "gpipe" and micro_batches > ROUNDS * stages:
        micro_batches = ROUNDS * stages
    counts = _counts(schedule, stages, number, micro_batches, len(chunks))
    amounts = [*(chunk.saved for chunk in chunks), *(chunk.waiting for chunk in chunks)]
    return float((counts @ np.array(amounts)).max()) / one


@lru_cache(maxsize=1024)
def _counts(
    schedule: str, stages: int, number: int, micro_batches: int, chunks: int
) -> NDArray[np.float64]:
    rows = build_rows(schedule, stages, micro_batches, chunks)
    return np.unique(live_counts(rows, number, chunks), axis=0)


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
