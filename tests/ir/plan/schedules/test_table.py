"""Schedules are tables that can run, hold few micro-batches, and agree with torch's own."""

import random
from collections.abc import Callable

import pytest

from plait.ir.errors import UsageError
from plait.ir.plan.schedules.interleave import as_rows, peak_in_flight
from plait.ir.plan.schedules.registry import verify_rows
from plait.ir.plan.schedules.table import ScheduleTable, gpipe, one_f_one_b


@pytest.mark.parametrize("table", [gpipe, one_f_one_b])
def test_random_sizes_run(table: Callable[[int, int], ScheduleTable]) -> None:
    rng = random.Random(0)
    for _ in range(60):
        verify_rows(as_rows(table(rng.randint(1, 12), rng.randint(1, 24))))


@pytest.mark.parametrize(("stages", "micro"), [(1, 1), (2, 1), (4, 2), (4, 8), (5, 5), (8, 3)])
def test_micro_batches_in_flight(stages: int, micro: int) -> None:
    table, whole = as_rows(one_f_one_b(stages, micro)), as_rows(gpipe(stages, micro))
    assert [peak_in_flight(table, s) for s in range(stages)] == [
        min(stages - s, micro) for s in range(stages)
    ]
    assert {peak_in_flight(whole, s) for s in range(stages)} == {micro}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ((), "no stages"),
        (((),), "no stages"),
        (((("F", 0),),), "exactly once"),
        (((("F", 0), ("B", 0), ("B", 0)),), "exactly once"),
        (((("B", 0), ("F", 0)),), "stage 0 waits for ever before B0"),
        (((("F", 0), ("B", 0)), (("F", 0), ("X", 0))), "stage 1 does not"),
    ],
)
def test_broken_tables_are_refused(table: ScheduleTable, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        verify_rows(as_rows(table))


def test_a_deadlock_names_the_stage() -> None:
    backward_first = (("F", 0), ("B", 0), ("F", 1), ("B", 1))
    late = (("F", 0), ("F", 1), ("B", 0), ("B", 1))
    with pytest.raises(UsageError, match="stage 0 waits for ever before B0"):
        verify_rows(as_rows((backward_first, late)))


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 4), (4, 8), (3, 7)])
def test_one_f_one_b_is_torchs(stages: int, micro: int) -> None:
    """torch keeps its table private; where it has moved, there is nothing to compare with.

    Its last row numbers forwards from 1 (torch 2.13), so there only the kinds are compared.
    """
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    make = getattr(schedules.Schedule1F1B, "_get_pipeline_order", None)
    if make is None:
        pytest.skip("this torch has no table of 1F1B")
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B"}
    schedule = object.__new__(schedules.Schedule1F1B)
    schedule._num_stages, schedule._n_microbatches = stages, micro
    theirs = [
        [
            (letters[a.computation_type.name], a.microbatch_index)
            for a in row
            if a is not None and a.computation_type.name in letters
        ]
        for row in make(schedule).values()
    ]
    ours = [list(row) for row in one_f_one_b(stages, micro)]
    assert ours[:-1] == theirs[:-1]
    assert [kind for kind, _ in ours[-1]] == [kind for kind, _ in theirs[-1]]
