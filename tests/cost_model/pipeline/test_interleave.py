"""Simulated schedules of chunks and split backwards against closed forms."""

from typing import Any

import pytest

from plait.cost_model.pipeline.simulate import StageSeconds, Timeline, simulate_rows
from plait.ir.errors import UsageError
from plait.ir.plan.schedules.interleave import interleaved, zb_h1
from plait.ir.plan.schedules.registry import build_rows

SIZES = [(2, 4), (4, 4), (4, 16), (8, 16)]


def equal(seconds: dict[str, float], stages: int, chunks: int) -> list[list[StageSeconds]]:
    part = {kind: amount / chunks for kind, amount in seconds.items()}
    return [[StageSeconds(part)] * chunks for _ in range(stages)]


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize(("stages", "micro"), SIZES)
def test_chunks_divide_the_bubble(stages: int, micro: int, chunks: int) -> None:
    """Narayanan et al. 2021, section 2.2: (p - 1) / v of the ideal time of m micro-batches."""
    line = simulate_rows(
        interleaved(stages, micro, chunks), equal({"F": 1.0, "B": 2.0}, stages, chunks)
    )
    assert line.makespan_seconds == pytest.approx(3.0 * (micro + (stages - 1) / chunks))
    assert line.bubble == pytest.approx((stages - 1) / (chunks * micro + stages - 1))


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 8), (8, 16)])
def test_zero_bubble_h1_takes_the_closed_form(stages: int, micro: int) -> None:
    """Qi et al. 2024, table 2: (p - 1) (F + I - W) idle, a third of 1F1B's when all are equal."""
    line = simulate_rows(zb_h1(stages, micro, 1), equal({"F": 1, "I": 1, "W": 1}, stages, 1))
    assert line.makespan_seconds == pytest.approx(3 * micro + (stages - 1))


@pytest.mark.parametrize(("stages", "micro"), SIZES)
def test_splitting_backwards_never_makes_a_step_longer(stages: int, micro: int) -> None:
    split = simulate_rows(zb_h1(stages, micro, 1), equal({"F": 1.0, "I": 1.2, "W": 0.8}, stages, 1))
    whole = simulate_rows(
        build_rows("1f1b", stages, micro, 1), equal({"F": 1.0, "B": 2.0}, stages, 1)
    )
    assert split.makespan_seconds <= whole.makespan_seconds + 1e-9


@pytest.mark.parametrize("build", [interleaved, zb_h1])
def test_uneven_stages_keep_the_rules(build: Any) -> None:
    stages, chunks, micro = 3, 2, 6
    costs = [
        [
            StageSeconds({"F": 1 + s, "B": 2 + c, "I": 1 + c, "W": 1.0}, {"F": 0.25, "B": 0.5})
            for c in range(chunks)
        ]
        for s in range(stages)
    ]
    line = simulate_rows(build(stages, micro, chunks), costs)
    check(line, stages, chunks)
    work = [sum(e.seconds for e in line.events if e.stage == s) for s in range(stages)]
    assert line.makespan_seconds >= max(work)


def check(line: Timeline, stages: int, chunks: int) -> None:
    """One step at a time per stage; a piece begins a transfer after the one before it."""
    ends = {}
    for e in line.events:
        virtual_stage = e.chunk * stages + e.stage
        ends["F" if e.kind == "F" else e.kind, virtual_stage, e.micro_batch] = e.end_seconds
    last = dict.fromkeys(range(stages), 0.0)
    for e in line.events:
        virtual_stage = e.chunk * stages + e.stage
        assert e.start_seconds >= last[e.stage] - 1e-9
        last[e.stage] = e.end_seconds
        if e.kind == "F" and virtual_stage:
            assert e.start_seconds >= ends["F", virtual_stage - 1, e.micro_batch] + 0.25 - 1e-9
        if e.kind in "BI":
            assert e.start_seconds >= ends["F", virtual_stage, e.micro_batch] - 1e-9
            if virtual_stage + 1 < stages * chunks:
                assert (
                    e.start_seconds >= ends[e.kind, virtual_stage + 1, e.micro_batch] + 0.5 - 1e-9
                )
        if e.kind == "W":
            assert e.start_seconds >= ends["I", virtual_stage, e.micro_batch] - 1e-9


def test_a_stage_alone_sends_nothing() -> None:
    cost = StageSeconds({"F": 1.0, "B": 2.0}, {"F": 9.0, "B": 9.0})
    assert simulate_rows(interleaved(1, 4, 2), [[cost] * 2]).makespan_seconds == 24.0


def test_every_stage_needs_a_price() -> None:
    with pytest.raises(UsageError, match="1 stages are priced, the schedule has 2"):
        simulate_rows(interleaved(2, 2, 1), equal({"F": 1, "B": 1}, 1, 1))
