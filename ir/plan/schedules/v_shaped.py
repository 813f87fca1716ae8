"""Schedules in the shape of a V: two model chunks per stage, on the way there and on the way back.

The first and the last chunk of the model share a stage, so backward begins where memory is freed last,
and every stage holds equally much. A building block (Qi et al. 2024, *Pipeline Parallelism with
Controllable Memory*) says when one micro-batch passes; all others repeat it one period later. Offsets
of 1 keep a micro-batch alive for as short as can be (V-Min), longer ones leave room for bubbles to
be filled (V-Half, ZBV). Weights are done where a stage would wait, or where it holds too much.

    ZBV, 2 stages      stage 0   F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 ...     kind, chunk, micro-batch
                       stage 1   F0.0 F1.0 F0.1 F1.1 ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from ...errors import UsageError
from .chunk_map import ChunkMap, ScheduleRows, ScheduleStep, stage_dependencies

PERIOD = 6  # steps of a micro-batch on a stage: forward, inputs and weights of two chunks
CHUNKS = 2
PASSES = (("F", 0), ("F", 1), ("I", 1), ("I", 0))  # in the order in which a micro-batch takes them
WEIGHTS = ("W", 0)  # of the chunk that waits longest
Row = list[ScheduleStep]


class BuildingBlock(NamedTuple):
    """Steps from stage to stage in each of the four passes, and how many (chunk, micro-batch) pairs
    may wait for their weights beyond those that the passes alone hold."""

    offsets: tuple[int, int, int, int]
    waiting: int

    def starts(self, stages: int) -> Iterator[tuple[int, ...]]:
        """When each pass of a micro-batch runs on each stage: the soonest at which the passes of all
        micro-batches find different slots."""
        turns = product(range(1, PERIOD + 1), repeat=len(PASSES) - 1)
        for turn in sorted(turns, key=lambda t: (sum(t), t)):
            starts = list(_starts(stages, self.offsets, (0, *turn)))
            if all(len({start % PERIOD for start in row}) == len(row) for row in starts):
                return iter(starts)
        raise UsageError(f"no V-shaped schedule of offsets {self.offsets} over {stages} stages")


V_HALF = BuildingBlock((2, 1, 2, 1), 1)
V_MIN = BuildingBlock((1, 1, 1, 1), 2)


def _starts(stages: int, offsets: Sequence[int], turns: Sequence[int]) -> Iterator[tuple[int, ...]]:
    last, ends = stages - 1, [0]
    for offset, turn in zip(offsets, turns, strict=True):
        ends.append(ends[-1] + turn + offset * last)
    for stage in range(stages):
        passed = (stage, last - stage, stage, last - stage)
        yield tuple(
            end + turn + offset * n
            for end, turn, offset, n in zip(ends, turns, offsets, passed, strict=False)
        )


def v_half(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """V-Half: about half of the activations of 1F1B."""
    return _of_block(V_HALF, stages, micro_batches)


def v_min(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """V-Min: about a third of the activations of 1F1B."""
    return _of_block(V_MIN, stages, micro_batches)


def _of_block(block: BuildingBlock, stages: int, micro_batches: int) -> ScheduleRows:
    rows: list[Row] = []
    for starts in block.starts(stages):
        times = sorted(
            (start + PERIOD * number, (kind, chunk, number))
            for (kind, chunk), start in zip(PASSES, starts, strict=True)
            for number in range(micro_batches)
        )
        rows.append([step for _, step in times])
    return with_weights(rows, most_alive(rows) + block.waiting)


def zbv(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """ZBV: no bubbles but the first where all parts take equally long, and no more activations than
    1F1B."""
    rows = [_zbv_row(stages, stage, micro_batches) for stage in range(stages)]
    return with_weights(rows, CHUNKS * stages)


def _zbv_row(stages: int, stage: int, micro_batches: int) -> Row:
    after = stages - stage
    passes = [("F", 0)] * (2 * after - 1) + [("F", 1), ("F", 0)] * stage
    passes += [("F", 1), ("I", 1)] * after
    passes += [("F", 0), ("I", 0), ("F", 1), ("I", 1)] * micro_batches
    return _numbered(passes, micro_batches)


def dualpipev(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """DualPipeV (DeepSeek, 2025): DualPipe folded in half. In the steady state every forward of one
    chunk is beside a backward of the other. Raises UsageError for fewer than 2 micro-batches a stage.
    """
    if micro_batches < 2 * stages:
        raise UsageError(
            f"dualpipev takes at least {2 * stages} micro-batches over {stages} stages, "
            f"not {micro_batches}"
        )
    return tuple(tuple(_dual_row(stages, s, micro_batches)) for s in range(stages))


def _dual_row(stages: int, stage: int, micro_batches: int) -> Row:
    before, after = stage + 1, stages - stage - 1
    passes = [("F", 0)] * (2 * after) + [("F", 0), ("F", 1)] * before
    passes += [("I", 1), WEIGHTS, ("F", 1)] * after
    passes += [("F", 0), ("B", 1), ("F", 1), ("B", 0)] * (micro_batches - 2 * stages + before)
    passes += [("B", 1), ("F", 1), ("B", 0)] * after
    last = [("B", 1), ("B", 0)] * before  # the second half of them in two parts
    passes += [*last[:before], *(("I", chunk) for _, chunk in last[before:])]
    passes += [WEIGHTS, ("I", 0)] * after + [WEIGHTS] * before
    return _numbered(passes, micro_batches)


def _numbered(passes: Sequence[tuple[str, int]], micro_batches: int) -> Row:
    """Passes with their micro-batches, each kind and chunk in order; none beyond the last. Weights are
    those of the oldest inputs that still lack them."""
    counts = {(kind, chunk): 0 for kind in "FB" for chunk in range(CHUNKS)}
    waiting, row = deque[tuple[int, int]](), Row()
    for kind, chunk in passes:
        if kind == "W":
            row.append((kind, *waiting.popleft()))
            continue
        key = ("F" if kind == "F" else "B", chunk)
        number = counts[key]
        if number < micro_batches:
            counts[key] += 1
            row.append((kind, chunk, number))
            waiting.extend([(chunk, number)] if kind == "I" else ())
    return row


def most_alive(rows: Sequence[Sequence[ScheduleStep]]) -> int:
    """Most (chunk, micro-batch) pairs between forward and backward on any stage."""
    most = 0
    for row in rows:
        alive = 0
        for kind, _, _ in row:
            alive += {"F": 1, "W": 0}.get(kind, -1)
            most = max(most, alive)
    return most


def with_weights(rows: Sequence[Row], most: int) -> ScheduleRows:
    """Rows of forwards and inputs with weights in between: in a run where all steps take one unit, a
    stage does weights when its next step has to wait, or would leave it with more than `most` pairs."""
    return tuple(map(tuple, _WeightFill(rows, most).run()))


class _WeightFill:
    """A run of all stages, unit by unit."""

    def __init__(self, rows: Sequence[Row], most: int) -> None:
        self.rows, self.most, self.map = rows, most, ChunkMap(len(rows), CHUNKS, folded=True)
        self.at, self.alive = [0] * len(rows), [0] * len(rows)
        self.waiting = [deque[ScheduleStep]() for _ in rows]
        self.done: set[tuple[int, ScheduleStep]] = set()
        self.result: list[Row] = [[] for _ in rows]

    def run(self) -> list[Row]:
        while any(self.waiting) or any(
            at < len(row) for at, row in zip(self.at, self.rows, strict=True)
        ):
            each = [(stage, self.next(stage)) for stage in range(len(self.rows))]
            steps = [(stage, step) for stage, step in each if step is not None]
            assert steps, "rows that wait for each other"
            for stage, step in steps:
                self.take(stage, step)
            self.done.update(steps)
        return self.result

    def next(self, stage: int) -> ScheduleStep | None:
        """What a stage does now."""
        row, at = self.rows[stage], self.at[stage]
        step = row[at] if at < len(row) else None
        full = self.alive[stage] == self.most
        if step is not None and self.ready(stage, step) and not (step[0] == "F" and full):
            return step
        return self.waiting[stage][0] if self.waiting[stage] else None

    def ready(self, stage: int, step: ScheduleStep) -> bool:
        near = all((stage, need) in self.done for need in stage_dependencies(step))
        number = self.map.number(stage, step[1])
        end = number == 0 if step[0] == "F" else number == self.map.total - 1
        return near and (end or any(s in self.done for s in self.map.sources(stage, step)))

    def take(self, stage: int, step: ScheduleStep) -> None:
        kind, chunk, number = step
        self.result[stage].append(step)
        self.alive[stage] += {"F": 1, "I": 0, "W": -1}[kind]
        if kind == "W":
            self.waiting[stage].popleft()
            return
        self.at[stage] += 1
        if kind == "I":
            self.waiting[stage].append(("W", chunk, number))
