"""Schedules of stages that hold several chunks of the model, and of backwards in two parts.

A row has one `(kind, chunk, micro_batch)` per step. Chunk c of stage s is piece c * stages + s of the
model, so that a micro-batch goes round the stages once per chunk. Kinds: "F" forward, "B" backward;
or, in its place, "I" backward to the inputs, which the stage before waits for, and "W" backward to
the weights, which nobody waits for and which fills bubbles.

    ZB-H1, 2 stages, 3 micro-batches     stage 0   F0 F1 I0 W0 F2 I1 W1 I2 W2
                                         stage 1   F0 I0 F1 I1 W0 F2 I2 W1 W2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .schedule import SCHEDULES, Table, check_order

T = TypeVar("T")
Step = tuple[str, int, int]
Rows = tuple[tuple[Step, ...], ...]
Counts = tuple[int, ...]
Ints = NDArray[np.int64]
ROUNDS = 3  # of micro-batches: two to warm up, and what a stage then holds repeats with every round
BACKWARD = "BI"  # kinds whose result the stage before waits for


class Rowing(Protocol):
    """Makes the rows of a schedule."""

    def __call__(self, stages: int, micro_batches: int, chunks: int) -> Rows: ...


def lift(table: Table) -> Rows:
    """A table of one chunk per stage as rows."""
    return tuple(tuple((kind, 0, number) for kind, number in row) for row in table)


def interleaved(stages: int, micro_batches: int, chunks: int) -> Rows:
    """Interleaved 1F1B (Narayanan et al. 2021): bubbles shrink by the number of chunks.

    Raises UsageError where micro-batches do not fill rounds of at least as many as stages.
    """
    order = _Order(stages, micro_batches, chunks)
    hops = 1 if chunks == 1 else 2
    return tuple(order.row(order.warm(stage, hops)) for stage in range(stages))


def zero_bubble(stages: int, micro_batches: int, chunks: int) -> Rows:
    """ZB-H1 (Qi et al. 2024; with chunks, ZB1P): stage s does weights s micro-batches late.

    That is as late as memory allows: no stage holds more than the first one does under 1F1B.
    """
    order = _Order(stages, micro_batches, chunks)
    return tuple(order.row(order.warm(stage, 1), stage) for stage in range(stages))


class _Order:
    """The order in which every stage takes its (chunk, micro-batch) pairs: in rounds of micro-batches
    that pass all chunks before the next round begins."""

    def __init__(self, stages: int, micro_batches: int, chunks: int) -> None:
        rounds = max(1, micro_batches // stages)
        if micro_batches % rounds:
            raise UsageError(
                f"{micro_batches} micro-batches do not fill {rounds} equal rounds over {stages} "
                f"stages; take a multiple of {stages}"
            )
        self.stages, self.chunks, self.width = stages, chunks, micro_batches // rounds
        starts = range(0, micro_batches, self.width)
        self.forward = [(c, m) for r in starts for c in range(chunks) for m in self.of_round(r)]
        self.backward = [
            (c, m) for r in starts for c in reversed(range(chunks)) for m in self.of_round(r)
        ]

    def of_round(self, start: int) -> range:
        return range(start, start + self.width)

    def warm(self, stage: int, hops: int) -> int:
        """Forwards before the first backward; `hops` more for each stage that follows."""
        count = (self.chunks - 1) * self.width + hops * (self.stages - 1 - stage)
        return min(count, len(self.forward))

    def row(self, warm: int, late: int | None = None) -> tuple[Step, ...]:
        """Forwards first, then one forward and one backward; weights `late` backwards later, if
        they are apart."""
        kind = "B" if late is None else "I"
        made: list[Step] = [("F", *pair) for pair in self.forward[:warm]]
        for i, pair in enumerate(self.backward):
            made += [("F", *ahead) for ahead in self.forward[warm + i : warm + i + 1]]
            made.append((kind, *pair))
            if late is not None and i >= late:
                made.append(("W", *self.backward[i - late]))
        if late:
            made += [("W", *pair) for pair in self.backward[-late:]]
        return tuple(made)


def _plain(name: str) -> Rowing:
    def rows(stages: int, micro_batches: int, chunks: int) -> Rows:
        if chunks != 1:
            raise UsageError(f"schedule {name} has one chunk per stage, not {chunks}")
        return lift(SCHEDULES[name](stages, micro_batches))

    return rows


ROWS: dict[str, Rowing] = {
    **{name: _plain(name) for name in SCHEDULES},
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}


def rows(name: str, stages: int, micro_batches: int, chunks: int) -> Rows:
    """The rows of a schedule by name; raises UsageError where there is none."""
    if name not in ROWS:
        raise UsageError(f"schedule {name!r} is not known here; known: {', '.join(ROWS)}")
    return ROWS[name](stages, micro_batches, chunks)


def deal(pieces: Sequence[T], stages: int) -> list[tuple[T, ...]]:
    """What each stage gets of the model's pieces, in their order."""
    return [tuple(pieces[stage::stages]) for stage in range(stages)]


def chunk_count(rows: Rows) -> int:
    return 1 + max((chunk for row in rows for _, chunk, _ in row), default=0)


def sources(step: Step, stage: int, stages: int, chunks: int) -> Iterator[tuple[int, Step]]:
    """Steps of neighbouring pieces, at their stages, of which one sends what this step receives."""
    kind, chunk, number = step
    piece = chunk * stages + stage + (-1 if kind == "F" else 1)
    if kind != "W" and 0 <= piece < stages * chunks:
        for sent in "F" if kind == "F" else BACKWARD:
            yield piece % stages, (sent, piece // stages, number)


def beside(step: Step, stage: int, stages: int, way: int) -> tuple[int, Step]:
    """The stage that has the piece before (-1) or after (1) that of a stage's step, and its step."""
    kind, chunk, number = step
    other, neighbour = divmod(chunk * stages + stage + way, stages)
    return neighbour, (kind, other, number)


def own_needs(step: Step) -> tuple[Step, ...]:
    """Steps of the same stage that come before; of each there is one."""
    kind, chunk, number = step
    return {"F": (), "W": (("I", chunk, number),)}.get(kind, (("F", chunk, number),))


def in_flight(rows: Rows, stage: int) -> int:
    """The most pairs of chunk and micro-batch whose activations a stage holds at once."""
    held = most = 0
    for kind, _, _ in rows[stage]:
        held += {"F": 1, "I": 0}.get(kind, -1)
        most = max(most, held)
    return most


@cache
def held_pieces(stages: int, stage: int, micro_batches: int, chunks: int) -> tuple[Counts, ...]:
    """How many micro-batches of each of its pieces a stage holds at once under the interleaved
    schedule, at every moment of which no other holds as many of all: those when it holds most, for
    before the first backward it only gains, and after the last forward it only loses."""
    full = micro_batches % stages == 0
    order = _Order(stages, min(micro_batches, ROUNDS * stages) if full else micro_batches, chunks)
    warm, steps = order.warm(stage, 2), len(order.forward)
    # one forward more than those to warm up; then, with every backward, one more again
    ahead = np.arange(min(warm + 1, steps), steps + 1)
    number = np.arange(chunks)
    done = _of_each(ahead, number, order.width, chunks)
    back = _of_each(ahead - ahead[0], chunks - 1 - number, order.width, chunks)
    return tuple(map(tuple, np.unique(done - back, axis=0).tolist()))


def _of_each(steps: Ints, place: Ints, width: int, chunks: int) -> Ints:
    """How many of the first `steps` are of each chunk, given its place in a round."""
    rounds, rest = np.divmod(steps[:, None], width * chunks)
    return rounds * width + np.clip(rest - place * width, 0, width)


def verify_rows(rows: Rows) -> None:
    """Raises UsageError unless the rows can run: every stage does each step once, each backward whole
    or in two parts, and no stages wait for each other for ever."""
    chunks, stages = chunk_count(rows), len(rows)
    micro_batches = 1 + max((number for row in rows for _, _, number in row), default=-1)
    if not micro_batches:
        raise UsageError("schedule: no stages or no micro-batches")
    for stage, row in enumerate(rows):
        _complete(stage, row, chunks, micro_batches)
    kept = [set(row) for row in rows]

    def needs(step: Step, stage: int) -> Iterator[tuple[int, Step]]:
        yield from ((stage, need) for need in own_needs(step))
        yield from (s for s in sources(step, stage, stages, chunks) if s[1] in kept[s[0]])

    check_order(rows, needs)


def _complete(stage: int, row: Sequence[Step], chunks: int, micro_batches: int) -> None:
    pairs = {(c, m) for c in range(chunks) for m in range(micro_batches)}
    done = {kind: [(c, m) for k, c, m in row if k == kind] for kind in "FBIW"}
    parts = [done["F"], done["B"] + done["I"], done["B"] + done["W"]]
    known = sum(map(len, done.values())) == len(row)
    if not known or any(set(p) != pairs or len(p) != len(pairs) for p in parts):
        raise UsageError(
            f"schedule: stage {stage} does not do each of {micro_batches} micro-batches of {chunks} "
            "chunks forward and backward exactly once"
        )
