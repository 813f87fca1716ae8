"""Schedules of chunks and split backwards can run, hold what they say, and are those of torch."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from plait.ir.errors import UsageError
from plait.ir.plan.schedules.interleave import (
    as_rows,
    in_flight_by_chunk,
    interleaved,
    peak_in_flight,
    zb_h1,
)
from plait.ir.plan.schedules.registry import ScheduleRows, build_rows, verify_rows
from plait.ir.plan.schedules.table import one_f_one_b

SIZES = [(2, 2, 1), (2, 4, 2), (4, 8, 1), (4, 8, 2), (4, 12, 3), (3, 6, 2), (4, 3, 2), (8, 16, 2)]


@pytest.mark.parametrize("build", [interleaved, zb_h1])
def test_random_sizes_run(build: Any) -> None:
    rng = random.Random(0)
    for _ in range(40):
        stages, rounds, chunks = rng.randint(1, 8), rng.randint(1, 4), rng.randint(1, 4)
        verify_rows(build(stages, stages * rounds, chunks))


@pytest.mark.parametrize(("stages", "micro", "chunks"), SIZES)
@pytest.mark.parametrize(
    ("make", "theirs"),
    [(interleaved, "ScheduleInterleaved1F1B"), (zb_h1, "ScheduleInterleavedZeroBubble")],
)
def test_the_order_is_torchs(make: Any, theirs: str, stages: int, micro: int, chunks: int) -> None:
    if make is interleaved and chunks == 1:
        return  # torch's holds more than 1F1B there; ours is 1F1B, see below
    rows = make(stages, micro, chunks)
    assert [list(row) for row in rows] == torchs(theirs, stages, micro, chunks)


def torchs(name: str, stages: int, micro: int, chunks: int) -> list[list[tuple[str, int, int]]]:
    """torch makes its table without a process group; it is private, and may move."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    rank_row = getattr(getattr(schedules, name, None), "_calculate_single_rank_operations", None)
    if rank_row is None:
        pytest.skip(f"this torch has no table of {name}")
    rounds = max(1, micro // stages)
    settings = SimpleNamespace(
        n_local_stages=chunks,
        pp_group_size=stages,
        _n_microbatches=micro,
        microbatches_per_round=micro // rounds,
    )
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    return [
        [
            (letters[a.computation_type.name], a.stage_index // stages, a.microbatch_index)
            for a in rank_row(settings, rank)
            if a is not None
        ]
        for rank in range(stages)
    ]


@pytest.mark.parametrize(("stages", "micro"), [(1, 3), (2, 2), (4, 8), (5, 10)])
def test_one_chunk_is_one_f_one_b(stages: int, micro: int) -> None:
    plain = as_rows(one_f_one_b(stages, micro))
    assert interleaved(stages, micro, 1) == plain
    joined = tuple(
        tuple(("B" if kind == "I" else kind, c, m) for kind, c, m in row if kind != "W")
        for row in zb_h1(stages, micro, 1)
    )
    assert joined == plain


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 8), (8, 16)])
def test_zero_bubble_holds_no_more_than_1f1b(stages: int, micro: int) -> None:
    rows = zb_h1(stages, micro, 1)
    assert {peak_in_flight(rows, stage) for stage in range(stages)} <= {stages}
    assert peak_in_flight(rows, 0) == stages


@pytest.mark.parametrize(("stages", "micro", "chunks"), [(4, 8, 2), (4, 16, 3), (8, 16, 2)])
def test_interleaved_holds_the_warm_up_and_one(stages: int, micro: int, chunks: int) -> None:
    rows = interleaved(stages, micro, chunks)
    for stage in range(stages):
        assert peak_in_flight(rows, stage) == (chunks - 1) * stages + 2 * (stages - 1 - stage) + 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((), "no stages"),
        (((("F", 0, 0), ("I", 0, 0)),), "exactly once"),
        (((("F", 0, 0), ("B", 0, 0), ("W", 0, 0)),), "exactly once"),
        (((("F", 0, 0), ("W", 0, 0), ("I", 0, 0)),), "stage 0 waits for ever before W00"),
        (((("F", 1, 0), ("F", 0, 0), ("B", 1, 0), ("B", 0, 0)),), "waits for ever before F10"),
    ],
)
def test_broken_rows_are_refused(rows: ScheduleRows, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        verify_rows(rows)


def test_micro_batches_must_fill_rounds() -> None:
    with pytest.raises(
        UsageError, match="7 micro-batches do not fill 2 equal rounds over 3 stages"
    ):
        interleaved(3, 7, 2)
    with pytest.raises(UsageError, match="gpipe has one chunk per stage, not 2"):
        build_rows("gpipe", 2, 2, 2)


@pytest.mark.parametrize(
    ("stages", "rounds", "chunks"), [(2, 1, 2), (3, 6, 2), (4, 5, 3), (5, 7, 4)]
)
def test_chunks_in_flight_are_those_of_the_rows(stages: int, rounds: int, chunks: int) -> None:
    """Also where long schedules are cut short: what a stage holds repeats."""
    rows = interleaved(stages, stages * rounds, chunks)
    for stage in range(stages):
        in_flight, met = [0] * chunks, set()
        for kind, chunk, _ in rows[stage]:
            in_flight[chunk] += 1 if kind == "F" else -1
            met.add(tuple(in_flight))
        peaks = in_flight_by_chunk(stages, stage, stages * rounds, chunks)
        assert set(peaks) <= met
        for one in met:
            assert any(all(a <= b for a, b in zip(one, other, strict=True)) for other in peaks)
        assert max(map(sum, peaks)) == peak_in_flight(rows, stage)
