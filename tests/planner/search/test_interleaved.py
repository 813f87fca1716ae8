"""Interleaved schedules in the search: faster where bubbles are, priced as simulated and explained."""

import random

import pytest
from msgspec.structs import replace

from plait.api.plans.explanation import differences
from plait.cost_model.hardware import load_cluster
from plait.cost_model.memory.in_flight import micro_batches_in_flight
from plait.cost_model.pipeline.closed_form import schedule_rows
from plait.cost_model.pipeline.scheduled import (
    StageWork,
    least_scheduled_seconds,
    scheduled_seconds,
    simulate_schedule,
)
from plait.cost_model.what_if import Conditions, simulate_step
from plait.ir.capture import trace
from plait.ir.errors import FileError, UsageError
from plait.ir.plan.schedules.interleave import peak_in_flight
from plait.ir.plan.schedules.registry import SCHEDULES, verify_rows
from plait.ir.plan.verify import verify_plan
from plait.ir.text.summary import plan_summary
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.planner.search.schedule_choice import chunk_counts
from plait.tests import zoo

STRATEGY = "pp=4,dp=2"


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.gpt2(14, batch=16, seq=16)
    return trace(module, batch)


@pytest.fixture(scope="module")
def cluster():
    """Devices so slow that the layers of a small model are work for them."""
    preset = load_cluster("8xh100")
    device = replace(
        preset.device,
        launch_overhead_seconds=0.0,
        runtime_overhead_bytes=0,
        peak_flops={dtype: rate / 1e5 for dtype, rate in preset.device.peak_flops.items()},
        memory_bandwidth_bytes_per_second=preset.device.memory_bandwidth_bytes_per_second / 1e3,
    )
    return replace(preset, device=device)


def planned(model, cluster, **options):
    return plan(model, cluster, PlanOptions(pins=pin_all(STRATEGY), micro_batches=8, **options))


def test_chunks_take_turns_where_bubbles_are(model, cluster):
    best, plain = planned(model, cluster), planned(model, cluster, schedule="1f1b")
    assert (best.schedule, plain.schedule) == ("interleaved", "1f1b")
    assert best.chunks_per_stage > 1 == plain.chunks_per_stage
    assert best.prediction.step_seconds < 0.9 * plain.prediction.step_seconds
    assert best.prediction.bubble < plain.prediction.bubble
    verify_plan(best)
    assert f"interleaved ×{best.chunks_per_stage}" in plan_summary(best)


@pytest.mark.parametrize("actions", [("keep",), ("recompute",), ("keep", "recompute")])
def test_the_prediction_is_what_simulation_and_terms_say(model, cluster, actions):
    best = planned(model, cluster, schedule="interleaved", memory_actions=actions)
    assert differences(best) == []
    found = simulate_step(best, Conditions())
    assert found.step_seconds == pytest.approx(best.prediction.step_seconds, rel=0.02)


def test_stages_hold_what_their_rows_keep_in_flight(model, cluster):
    best = planned(model, cluster, schedule="interleaved", memory_actions=("keep",))
    rows = schedule_rows(best)
    verify_rows(rows)
    for number, stage in enumerate(best.stages):
        after = len(best.stages) - 1 - number
        waiting = micro_batches_in_flight(after, len(best.stages), 8, best.chunks_per_stage)
        assert waiting * best.chunks_per_stage == pytest.approx(peak_in_flight(rows, number))
        (share,) = stage.bytes_by_strategy
        assert dict(stage.memory_terms)["activations"] > (waiting - 1) * share.bytes.saved_bytes


def test_a_budget_is_kept_with_chunks_too(model, cluster):
    free = planned(model, cluster)
    tight = free.peak_bytes * 3 // 4
    best = planned(model, cluster, memory_bytes=tight)
    assert best.peak_bytes <= tight
    assert best.prediction.step_seconds >= free.prediction.step_seconds


def test_rounds_are_full():
    assert list(chunk_counts("interleaved", 4, 8, 17)) == [2, 3, 4]
    assert list(chunk_counts("interleaved", 4, 5, 17)) == [2, 3, 4]
    assert list(chunk_counts("interleaved", 4, 3, 17)) == []
    assert list(chunk_counts("interleaved", 4, 9, 17)) == []
    assert list(chunk_counts("zb-h1", 4, 8, 17)) == [1]
    assert list(chunk_counts("zbv", 4, 9, 8)) == [2]
    assert list(chunk_counts("zbv", 4, 9, 7)) == []
    assert list(chunk_counts("dualpipev", 4, 7, 17)) == []


def test_broken_chunks_are_told(model, cluster):
    best = planned(model, cluster, schedule="interleaved")
    first, *rest = best.stages
    broken = replace(best, stages=(replace(first, model_chunks=first.model_chunks[:-1]), *rest))
    with pytest.raises(FileError, match=r"stages"):
        verify_plan(broken)
    swapped = replace(best, stages=(*best.stages[::-1],))
    with pytest.raises(FileError, match=r"stages\[0\]\.model_chunks\[0\]"):
        verify_plan(swapped)
    with pytest.raises(UsageError, match="schedule"):
        planned(model, cluster, schedule="zero")


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h1", "zbv", "v-half", "v-min", "dualpipev"])
def test_every_schedule_is_priced_as_simulated_and_explained(model, cluster, schedule):
    best = planned(model, cluster, schedule=schedule)
    assert best.schedule == schedule
    verify_plan(best)
    assert differences(best) == []
    found = simulate_step(best, Conditions())
    assert found.step_seconds == pytest.approx(best.prediction.step_seconds, rel=1e-6)
    assert all(stage.weights_seconds > 0 for stage in best.stages) == (schedule != "gpipe")


def test_v_shaped_schedules_need_less_memory(model, cluster):
    peaks = {
        name: max(dict(stage.memory_terms)["activations"] for stage in answer.stages)
        for name in ("1f1b", "v-half", "v-min")
        for answer in [planned(model, cluster, schedule=name, memory_actions=("keep",))]
    }
    assert peaks["v-min"] < peaks["v-half"] < peaks["1f1b"]


def test_long_steps_repeat_what_short_ones_do():
    work = [StageWork(1.0 + s / 10, 2.0 + s / 7, 0.9, (0.5, 0.5)) for s in range(3)]
    for name in ("zbv", "v-half", "v-min", "dualpipev"):
        exact = simulate_schedule(name, work, [0.1] * 3, 30).makespan_seconds
        assert scheduled_seconds(name, work, [0.1] * 3, 30) == pytest.approx(exact, rel=0.01)
        assert 0.8 * exact < least_scheduled_seconds(name, work, [0.1] * 3, 30) <= exact


def test_no_schedule_takes_less_than_its_lower_bound():
    draw = random.Random(0)
    for name, schedule in SCHEDULES.items():
        stages, chunks = draw.choice((2, 3, 4)), schedule.chunks or 2
        stages += schedule.mirrored and stages % 2
        share = draw.uniform(0.3, 0.7) if chunks > 1 else 1.0
        work = [
            StageWork(forward, backward, weights, (share, 1 - share)[:chunks])
            for forward, backward, weights in (
                [draw.uniform(0.5, 2) for _ in "FBW"] for _ in range(stages)
            )
        ]
        sends = [draw.choice((0.0, 0.3)) for _ in range(stages)]
        for count in (2 * stages, 3 * stages, 6 * stages):
            exact = simulate_schedule(name, work, sends, count).makespan_seconds
            assert least_scheduled_seconds(name, work, sends, count) <= exact


def test_a_schedule_that_stages_cannot_have_is_refused(model, cluster):
    with pytest.raises(UsageError, match="at least 8 micro-batches over 4 stages, not 4"):
        plan(
            model,
            cluster,
            PlanOptions(pins=pin_all(STRATEGY), micro_batches=4, schedule="dualpipev"),
        )
