"""All schedules by name: they run, hold what they promise, and are those that others publish."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from plait.cost_model.pipeline.simulate import simulate, simulate_rows, stage_seconds
from plait.ir.errors import UsageError
from plait.ir.plan.schedules.chunk_map import ChunkMap, ScheduleRows
from plait.ir.plan.schedules.interleave import peak_in_flight
from plait.ir.plan.schedules.registry import (
    SCHEDULES,
    build_rows,
    chunk_map,
    is_mirrored,
    verify_rows,
)
from plait.ir.plan.schedules.table import one_f_one_b

V_SHAPED = [name for name, schedule in SCHEDULES.items() if schedule.folded]


@pytest.mark.parametrize("name", SCHEDULES)
def test_random_sizes_run_and_hold_what_they_say(name: str) -> None:
    rng = random.Random(0)
    for _ in range(25):
        stages, rounds = rng.randint(1, 8), rng.randint(2, 4)
        stages *= 1 + is_mirrored(name)
        build_rows(name, stages, stages * rounds, SCHEDULES[name].chunks or rng.randint(1, 4))


@pytest.mark.parametrize("folded", [False, True])
def test_a_map_numbers_every_chunk_once(folded: bool) -> None:
    chunks = ChunkMap(3, 4, folded)
    assert sorted(n for stage in range(3) for n in chunks.numbers(stage)) == list(range(12))
    for number in range(12):
        assert chunks.number(*chunks.place(number)) == number
    names = [f"chunk {n}" for n in range(12)]
    assert chunks.collect(chunks.deal(names)) == tuple(names)
    turn = chunks.neighbour(2, ("F", 0, 5), 1)
    assert turn == ((2, ("F", 1, 5)) if folded else (0, ("F", 1, 5)))
    assert chunks.neighbour(0, ("F", 0, 5), -1) is None


def test_a_two_way_map_has_every_chunk_on_two_stages() -> None:
    chunks = ChunkMap(4, 2, mirrored=True)
    assert [chunks.numbers(stage) for stage in range(4)] == [[0, 3], [1, 2], [2, 1], [3, 0]]
    assert all(chunks.number(*place) == n for n in range(4) for place in chunks.places(n))
    names = [f"chunk {n}" for n in range(4)]
    assert chunks.collect(chunks.deal(names)) == tuple(names)
    assert chunks.neighbour(2, ("F", 1, 5), 1) == (1, ("F", 1, 5))
    assert chunks.neighbour(0, ("F", 1, 5), 1) is None


@pytest.mark.parametrize(("stages", "share"), [(2, 0.0), (4, 0.5), (8, 0.65)])
def test_two_pipelines_wait_for_each_other_less_than_one(stages: int, share: float) -> None:
    """Chimera's: half of 1F1B's bubbles with as many micro-batches in flight, and one more."""
    rows, chunks = (
        build_rows("bidirectional", stages, 2 * stages, 2),
        ChunkMap(stages, 2, mirrored=True),
    )
    costs = [[stage_seconds(1.0, 2.0)] * 2] * stages
    ended = simulate_rows(rows, costs, chunks).makespan_seconds
    plain = simulate(one_f_one_b(stages, 2 * stages), [costs[0][0]] * stages).makespan_seconds
    busy = 3.0 * 2 * stages
    assert ended - busy <= share * (plain - busy)
    assert max(peak_in_flight(rows, stage) for stage in range(stages)) == stages + 1


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 8), (4, 10), (8, 20)])
@pytest.mark.parametrize(
    ("name", "theirs"), [("zbv", "ScheduleZBVZeroBubble"), ("dualpipev", "ScheduleDualPipeV")]
)
def test_the_order_is_torchs(name: str, theirs: str, stages: int, micro: int) -> None:
    """Of forwards and of gradients of inputs; weights fill what is left."""
    rows = build_rows(name, stages, micro, 2)
    for row, other in zip(rows, torch_rows(theirs, stages, micro), strict=True):
        assert waited_for(row) == waited_for(other)


def waited_for(row: Any) -> list[tuple[str, int, int]]:
    return [(kind.replace("B", "I"), chunk, number) for kind, chunk, number in row if kind != "W"]


def torch_rows(name: str, stages: int, micro: int) -> list[list[tuple[str, int, int]]]:
    """torch makes its table without a process group; it is private, and may move."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    rank_row = getattr(getattr(schedules, name, None), "_calculate_single_rank_operations", None)
    if rank_row is None:
        pytest.skip(f"this torch has no table of {name}")
    settings = SimpleNamespace(
        n_local_stages=2, pp_group_size=stages, _n_microbatches=micro, num_stages=2 * stages
    )
    settings._num_stages = settings.num_stages
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    rows = []
    for rank in range(stages):
        actions = [a for a in rank_row(settings, rank) if a is not None]
        single = [s for a in actions for s in (getattr(a, "sub_actions", None) or [a])]
        rows.append(
            [
                (letters[a.computation_type.name], int(a.stage_index >= stages), a.microbatch_index)
                for a in single
            ]
        )
    return rows


@pytest.mark.parametrize(
    ("name", "share"), [("zbv", 1.0), ("v-half", 0.75), ("v-min", 0.6), ("dualpipev", 1.1)]
)
def test_v_shaped_schedules_hold_a_share_of_1f1bs_activations(name: str, share: float) -> None:
    for stages in (4, 8, 16):
        rows = build_rows(name, stages, 3 * stages, 2)
        most = [peak_in_flight(rows, stage) / 2 for stage in range(stages)]
        assert max(most) <= share * stages + 1
        assert max(most) - min(most) <= 2  # every stage holds as much


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (((("F", 0, 0), ("F", 1, 0), ("I", 1, 0), ("I", 0, 0), ("W", 1, 0)),), "exactly once"),
        (
            (
                (("F", 1, 0), ("F", 0, 0), ("B", 1, 0), ("B", 0, 0)),
                (("F", 0, 0), ("F", 1, 0), ("B", 1, 0), ("B", 0, 0)),
            ),
            "stage 0 waits for ever before F10",
        ),
    ],
)
def test_broken_v_shapes_are_refused(rows: ScheduleRows, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        verify_rows(rows, ChunkMap(len(rows), 2, folded=True))


def test_what_a_schedule_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match="zbv has 2 chunks per stage, not 3"):
        build_rows("zbv", 2, 4, 3)
    with pytest.raises(UsageError, match="at least 8 micro-batches over 4 stages, not 6"):
        build_rows("dualpipev", 4, 6, 2)
    with pytest.raises(UsageError, match="zb-h2"):
        build_rows("zb-h2", 4, 8, 1)
    for stages, micro_batches in ((3, 6), (4, 5)):
        with pytest.raises(UsageError, match=r"an even number of (stages|micro-batches), not [35]"):
            build_rows("bidirectional", stages, micro_batches, 2)
    assert [chunk_map(name, 2, 2).folded for name in V_SHAPED] == [True] * len(V_SHAPED)
