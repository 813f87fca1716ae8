"""Interleaved and zero-bubble schedules: several model chunks per stage, backward in two parts.

A row has one `(kind, chunk, micro_batch)` per step. Chunk c of stage s is model chunk
c * stages + s, so that a micro-batch goes round the stages once per chunk. Kinds: "F" forward,
"B" backward; or, in its place, "I" backward to the inputs, which the stage before waits for,
and "W" backward to the weights, which nobody waits for and which fills bubbles.

    ZB-H1, 2 stages, 3 micro-batches     stage 0   F0 F1 I0 W0 F2 I1 W1 I2 W2
                                         stage 1   F0 I0 F1 I1 W0 F2 I2 W1 W2
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .chunk_map import ScheduleRows, ScheduleStep
from .table import ScheduleTable

ChunkCounts = tuple[int, ...]
Ints = NDArray[np.int64]
ROUNDS = 3  # of micro-batches: two to warm up, and what a stage then holds repeats with every round


def as_rows(table: ScheduleTable) -> ScheduleRows:
    """Rows of a table with one chunk per stage."""
    return tuple(tuple((kind, 0, number) for kind, number in row) for row in table)


def interleaved(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """Interleaved 1F1B (Narayanan et al. 2021): bubbles shrink by the number of chunks.

    Raises UsageError where micro-batches do not fill rounds of at least as many as stages.
    """
    order = _Order(stages, micro_batches, chunks)
    per_stage = 1 if chunks == 1 else 2
    return tuple(order.row(order.warm(stage, per_stage)) for stage in range(stages))


def zb_h1(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """ZB-H1 (Qi et al. 2024; with chunks, ZB1P): stage s does weights s micro-batches late.

    That is as late as memory allows: no stage holds more than the first one does under 1F1B.
    """
    order = _Order(stages, micro_batches, chunks)
    return tuple(order.row(order.warm(stage, 1), stage) for stage in range(stages))


def rounds_of(stages: int, micro_batches: int) -> int:
    """Equal rounds of micro-batches, of at least as many as stages; raises UsageError."""
    rounds = max(1, micro_batches // stages)
    if micro_batches % rounds:
        raise UsageError(
            f"{micro_batches} micro-batches do not fill {rounds} equal rounds over {stages} "
            f"stages; take a multiple of {stages}"
        )
    return rounds


class _Order:
    """The order in which every stage takes its (chunk, micro-batch) pairs: in rounds of micro-batches
    that pass all chunks before the next round begins."""

    def __init__(self, stages: int, micro_batches: int, chunks: int) -> None:
        self.stages, self.chunks = stages, chunks
        self.width = micro_batches // rounds_of(stages, micro_batches)
        starts = range(0, micro_batches, self.width)
        self.forward = [(c, m) for r in starts for c in range(chunks) for m in self.of_round(r)]
        self.backward = [
            (c, m) for r in starts for c in reversed(range(chunks)) for m in self.of_round(r)
        ]

    def of_round(self, start: int) -> range:
        return range(start, start + self.width)

    def warm(self, stage: int, per_stage: int) -> int:
        """Forwards before the first backward: `per_stage` more for each stage that follows."""
        count = (self.chunks - 1) * self.width + per_stage * (self.stages - 1 - stage)
        return min(count, len(self.forward))

    def row(self, warm: int, late: int | None = None) -> tuple[ScheduleStep, ...]:
        """Forwards first, then one forward and one backward; weights `late` backwards later, if
        they are apart."""
        kind = "B" if late is None else "I"
        steps: list[ScheduleStep] = [("F", *pair) for pair in self.forward[:warm]]
        for i, pair in enumerate(self.backward):
            steps += [("F", *forward) for forward in self.forward[warm + i : warm + i + 1]]
            steps.append((kind, *pair))
            if late is not None and i >= late:
                steps.append(("W", *self.backward[i - late]))
        if late:
            steps += [("W", *pair) for pair in self.backward[-late:]]
        return tuple(steps)


def chunk_count(rows: ScheduleRows) -> int:
    return 1 + max((chunk for row in rows for _, chunk, _ in row), default=0)


def peak_in_flight(rows: ScheduleRows, stage: int) -> int:
    """Peak number of (chunk, micro-batch) pairs whose activations a stage holds."""
    count = peak = 0
    for kind, _, _ in rows[stage]:
        count += {"F": 1, "I": 0}.get(kind, -1)
        peak = max(peak, count)
    return peak


@cache
def in_flight_by_chunk(
    stages: int, stage: int, micro_batches: int, chunks: int
) -> tuple[ChunkCounts, ...]:
    """Numbers of in-flight micro-batches per chunk under the interleaved schedule, one tuple for
    every point at which the stage's memory may peak: from the last warm-up forward on, since the
    numbers only grow before the first backward and only fall after the last forward."""
    full = micro_batches % stages == 0
    order = _Order(stages, min(micro_batches, ROUNDS * stages) if full else micro_batches, chunks)
    warm, steps = order.warm(stage, 2), len(order.forward)
    # one forward more than those to warm up; then, with every backward, one more again
    forwards = np.arange(min(warm + 1, steps), steps + 1)
    number = np.arange(chunks)
    done = _of_each(forwards, number, order.width, chunks)
    back = _of_each(forwards - forwards[0], chunks - 1 - number, order.width, chunks)
    return tuple(map(tuple, np.unique(done - back, axis=0).tolist()))


def _of_each(steps: Ints, place: Ints, width: int, chunks: int) -> Ints:
    """Number of the first `steps` that belong to each chunk, given the chunk's place in a round."""
    rounds, rest = np.divmod(steps[:, None], width * chunks)
    return rounds * width + np.clip(rest - place * width, 0, width)
