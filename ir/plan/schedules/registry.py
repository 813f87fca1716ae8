"""The pipeline schedules by name: how each is built, and what it asks of stages and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from ...errors import UsageError
from ...unknown_name import unknown_name
from .chunk_map import ChunkMap, ScheduleRows, ScheduleStep
from .interleave import as_rows, chunk_count, interleaved, peak_in_flight, rounds_of, zb_h1
from .mirrored import DIRECTIONS, bidirectional, check_even
from .table import ScheduleTable, gpipe, one_f_one_b, verify_no_deadlock
from .v_shaped import CHUNKS, dualpipev, v_half, v_min, zbv

Peak = Callable[[int, int, int], int]  # of stages, micro-batches and chunks


class ScheduleBuilder(Protocol):
    """Builds a schedule."""

    def __call__(self, stages: int, micro_batches: int, chunks: int) -> ScheduleRows: ...


class Schedule(NamedTuple):
    """A pipeline schedule. `chunks`: model chunks per stage, 0: any number; `folded`, `mirrored`: see
    `ChunkMap`; `splits`: backward runs in two parts, inputs and weights; `rounds`: micro-batches come
    in equal rounds of at least as many as stages. `most`: (chunk, micro-batch) pairs that a stage may
    hold."""

    build: ScheduleBuilder
    most: Peak
    chunks: int = 1
    folded: bool = False
    splits: bool = False
    rounds: bool = False
    mirrored: bool = False


def _plain(table: Callable[[int, int], ScheduleTable]) -> ScheduleBuilder:
    def rows(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
        return as_rows(table(stages, micro_batches))

    return rows


def _warm_up_and_one(stages: int, micro_batches: int, chunks: int) -> int:
    if chunks == 1:
        return stages
    width = micro_batches // rounds_of(stages, micro_batches)
    return (chunks - 1) * width + 2 * (stages - 1) + 1


def _all(stages: int, micro_batches: int, chunks: int) -> int:
    return micro_batches


def _one_each(stages: int, micro_batches: int, chunks: int) -> int:
    return chunks * stages


def _one_each_and_one(stages: int, micro_batches: int, chunks: int) -> int:
    return chunks * stages + 1


def _one_each_direction(stages: int, micro_batches: int, chunks: int) -> int:
    return stages + 1


def _half(stages: int, micro_batches: int, chunks: int) -> int:
    return stages + 2


def _third(stages: int, micro_batches: int, chunks: int) -> int:
    return 2 * stages // 3 + 4


SCHEDULES: dict[str, Schedule] = {
    "gpipe": Schedule(_plain(gpipe), _all),
    "1f1b": Schedule(_plain(one_f_one_b), _one_each),
    "interleaved": Schedule(interleaved, _warm_up_and_one, chunks=0, rounds=True),
    "zb-h1": Schedule(zb_h1, _one_each, splits=True, rounds=True),
    "zbv": Schedule(zbv, _one_each, CHUNKS, folded=True, splits=True),
    "v-half": Schedule(v_half, _half, CHUNKS, folded=True, splits=True),
    "v-min": Schedule(v_min, _third, CHUNKS, folded=True, splits=True),
    "dualpipev": Schedule(dualpipev, _one_each_and_one, CHUNKS, folded=True, splits=True),
    "bidirectional": Schedule(bidirectional, _one_each_direction, DIRECTIONS, mirrored=True),
}


def schedule_named(name: str) -> Schedule:
    """A schedule; raises UsageError for an unknown name."""
    if name not in SCHEDULES:
        raise UsageError(unknown_name("schedule", name, SCHEDULES))
    return SCHEDULES[name]


def check_schedule(name: str, stages: int, micro_batches: int, chunks: int) -> None:
    """Raises UsageError for an unknown schedule, or where it cannot have these numbers."""
    schedule = schedule_named(name)
    if schedule.chunks not in (0, chunks):
        some = "one chunk" if schedule.chunks == 1 else f"{schedule.chunks} chunks"
        raise UsageError(f"schedule {name} has {some} per stage, not {chunks}")
    if schedule.rounds:
        rounds_of(stages, micro_batches)
    if schedule.build is dualpipev:
        dualpipev(stages, micro_batches, chunks)
    if schedule.mirrored:
        check_even(stages, micro_batches)


def chunk_map(name: str, stages: int, chunks: int) -> ChunkMap:
    """Which stage runs which chunk under a schedule; unknown ones run round."""
    schedule = SCHEDULES.get(name)
    return ChunkMap(
        stages,
        chunks,
        schedule is not None and schedule.folded,
        schedule is not None and schedule.mirrored,
    )


def is_mirrored(name: str) -> bool:
    """Whether every model chunk is on two stages under a schedule."""
    return name in SCHEDULES and SCHEDULES[name].mirrored


def splits_backward(name: str) -> bool:
    """Whether programs of a schedule run the two parts of backward apart."""
    return name in SCHEDULES and SCHEDULES[name].splits


def schedule_text(name: str, chunks: int) -> str:
    """`1f1b`, `interleaved ×3`."""
    return name + (f" ×{chunks}" if chunks > 1 else "")


@lru_cache(maxsize=64)
def build_rows(name: str, stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """Build a schedule by name, and check that it runs and what it holds. Raises UsageError as
    `check_schedule` does."""
    check_schedule(name, stages, micro_batches, chunks)
    rows, schedule = SCHEDULES[name].build(stages, micro_batches, chunks), SCHEDULES[name]
    verify_rows(rows, chunk_map(name, stages, chunks))
    most = schedule.most(stages, micro_batches, chunks)
    for stage in range(stages):
        count = peak_in_flight(rows, stage)
        if count > most:
            raise UsageError(f"schedule {name}: stage {stage} holds {count} chunks, of {most}")
    return rows


def verify_rows(rows: ScheduleRows, chunks: ChunkMap | None = None) -> None:
    """Raises UsageError unless the rows can run: every stage does each step once, each backward at
    once or in two parts, and no stages wait for each other for ever."""
    chunks = chunks or ChunkMap(len(rows), chunk_count(rows))
    micro_batches = 1 + max((number for row in rows for _, _, number in row), default=-1)
    if not micro_batches:
        raise UsageError("schedule: no stages or no micro-batches")
    for stage, row in enumerate(rows):
        _complete(stage, row, chunks, micro_batches)
    verify_no_deadlock(rows, chunks.needs_of(rows))


def _complete(
    stage: int, row: Sequence[ScheduleStep], chunks: ChunkMap, micro_batches: int
) -> None:
    numbers = range(micro_batches)
    pairs = {(c, m) for c in range(chunks.chunks) for m in numbers if chunks.runs(c, m)}
    done = {kind: [(c, m) for k, c, m in row if k == kind] for kind in "FBIW"}
    parts = [done["F"], done["B"] + done["I"], done["B"] + done["W"]]
    known = sum(map(len, done.values())) == len(row)
    if not known or any(set(p) != pairs or len(p) != len(pairs) for p in parts):
        raise UsageError(
            f"schedule: stage {stage} does not do each of {micro_batches} micro-batches of "
            f"{chunks.chunks} chunks forward and backward exactly once"
        )
