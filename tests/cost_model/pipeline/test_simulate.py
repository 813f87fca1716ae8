"""Simulated schedules against their closed forms, and the general simulator by hand."""

import random
from typing import Any

import pytest

from plait.cost_model.pipeline.simulate import (
    StageSeconds,
    Task,
    run_tasks,
    simulate,
    stage_seconds,
)
from plait.ir.errors import UsageError
from plait.ir.plan.schedules.table import gpipe, one_f_one_b

SIZES = [(1, 1), (1, 5), (2, 2), (4, 4), (4, 16), (5, 3), (8, 2)]


@pytest.mark.parametrize("table", [gpipe, one_f_one_b])
@pytest.mark.parametrize(("stages", "micro"), SIZES)
def test_equal_stages_take_the_closed_form(table: Any, stages: int, micro: int) -> None:
    line = simulate(table(stages, micro), [stage_seconds(1.0, 2.0)] * stages)
    assert line.makespan_seconds == pytest.approx((micro + stages - 1) * 3.0)
    assert line.bubbles == pytest.approx(((stages - 1) / (micro + stages - 1),) * stages)
    assert line.bubble == pytest.approx((stages - 1) / (micro + stages - 1))


@pytest.mark.parametrize("table", [gpipe, one_f_one_b])
def test_timelines_keep_the_rules(table: Any) -> None:
    rng = random.Random(1)
    for _ in range(40):
        stages, micro = rng.randint(1, 7), rng.randint(1, 10)
        costs = [
            stage_seconds(*(rng.choice([0.0, rng.random()]) for _ in range(4)))
            for _ in range(stages)
        ]
        line = simulate(table(stages, micro), costs)
        check(line.events, costs, stages)
        busiest = max(micro * sum(c.compute.values()) for c in costs)
        through = sum(sum(c.compute.values()) for c in costs)
        assert line.makespan_seconds >= max(busiest, through) - 1e-9
        assert all(-1e-9 <= b <= 1 for b in line.bubbles)


def check(events: tuple, costs: list[StageSeconds], stages: int) -> None:  # type: ignore[type-arg]
    """One thing at a time per stage; nothing begins before what it needs has arrived."""
    at = {(e.stage, e.kind, e.micro_batch): e for e in events}
    for e in events:
        assert e.seconds == pytest.approx(costs[e.stage].compute[e.kind])
        step = 1 if e.kind == "F" else -1
        before = at.get((e.stage - step, e.kind, e.micro_batch))
        if before is not None:
            sent = costs[before.stage].transfer[e.kind]
            assert e.start_seconds >= before.end_seconds + sent - 1e-9
        if e.kind == "B":
            assert e.start_seconds >= at[e.stage, "F", e.micro_batch].end_seconds - 1e-9
    for stage in range(stages):
        own = [e for e in events if e.stage == stage]
        ends = [0.0, *(e.end_seconds for e in own)]
        assert all(e.start_seconds >= end - 1e-9 for e, end in zip(own, ends, strict=False))


def test_transfers_delay_and_queue_on_their_link() -> None:
    costs = [stage_seconds(1.0, 1.0, send_forward=5.0), stage_seconds(1.0, 1.0)]
    line = simulate(gpipe(2, 2), costs)
    starts = {(e.stage, e.kind, e.micro_batch): e.start_seconds for e in line.events}
    assert starts[1, "F", 0] == 6.0
    assert starts[1, "F", 1] == 11.0  # the second result waits for the link, not for the stage
    assert starts[0, "F", 1] == 1.0


def test_slower_is_never_sooner() -> None:
    table = one_f_one_b(4, 8)
    plain = simulate(table, [stage_seconds(1, 2)] * 4).makespan_seconds
    for slow in range(4):
        costs = [stage_seconds(1, 2 + (s == slow)) for s in range(4)]
        # At least the slow stage's own work, and the way of one micro-batch to it and back.
        least = 8 * 4 + slow * 3
        assert simulate(table, costs).makespan_seconds >= max(plain, least)


def test_any_tasks_on_any_resources() -> None:
    """A copy between two computations, and a wait for both."""
    a, b, c = ("gpu", 0, ("F", 0)), ("link", 0, ("F", 0)), ("gpu", 1, ("F", 0))
    spans = run_tasks(
        {
            ("gpu", 1): [Task(c, 1.0, (b, a))],
            ("link", 0): [Task(b, 2.0, (a,))],
            ("gpu", 0): [Task(a, 3.0)],
        }
    )
    assert spans == {a: (0.0, 3.0), b: (3.0, 5.0), c: (5.0, 6.0)}


def test_a_deadlock_ends_with_an_error() -> None:
    backward_first = (("F", 0), ("B", 0), ("F", 1), ("B", 1))
    late = (("F", 0), ("F", 1), ("B", 0), ("B", 1))
    with pytest.raises(UsageError, match="deadlock"):
        simulate((backward_first, late), [stage_seconds(1, 1)] * 2)


def test_every_stage_needs_a_price() -> None:
    with pytest.raises(UsageError, match="1 stages are priced, the schedule has 2"):
        simulate(gpipe(2, 2), [stage_seconds(1, 1)])
