"""The front: no plan of it is covered by another, and it holds the plan that is asked for."""

import itertools

import pytest
from msgspec.structs import replace

from plait.cost_model.hardware import load_cluster
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan
from plait.planner.layers.mix import CLOSE
from plait.planner.search.pareto import STEP, pareto_front


@pytest.fixture(scope="module")
def cluster():
    """Without what a runtime holds, which would hide the bytes of a small model."""
    made = load_cluster("2x2xa100-80")
    return replace(made, device=replace(made.device, runtime_overhead_bytes=0))


@pytest.fixture(scope="module")
def found(traced, cluster):
    model = traced("gpt2")
    return pareto_front(model, cluster, PlanOptions(), batches=(model.batch * 2,))


def face(made):
    return made.prediction.samples_per_second, made.peak_bytes


def test_plans_get_slower_and_smaller(found, traced):
    assert len(found) >= 3
    assert {made.global_batch for made in found} == {traced("gpt2").batch, traced("gpt2").batch * 2}
    for faster, slower in itertools.combinations(found, 2):
        assert face(faster)[0] >= face(slower)[0]
        if faster.global_batch <= slower.global_batch:
            assert face(slower)[1] < face(faster)[1] * (1 - STEP)


def test_the_plan_is_on_the_front(found, traced, cluster):
    model = traced("gpt2")
    best = plan(model, cluster, PlanOptions())
    mine = [made for made in found if made.global_batch == model.batch]
    assert mine[0].prediction.step_seconds == pytest.approx(best.prediction.step_seconds, rel=1e-12)
    for made in found:
        verify_plan(made)


def asked_for(point, traced, cluster):
    """The plan for the memory that a plan of the front takes, as near as mixes of layers come to it."""
    options = PlanOptions(memory_bytes=int(face(point)[1] * (1 + CLOSE)), simpler_within=0)
    return plan(traced("gpt2"), cluster, options)


def test_a_plan_of_the_front_can_be_asked_for(found, traced, cluster):
    mine = [point for point in found if point.global_batch == traced("gpt2").batch]
    for point in mine[len(mine) // 3 :: len(mine) // 3][:2]:
        again = asked_for(point, traced, cluster)
        assert again.prediction.step_seconds <= point.prediction.step_seconds * (1 + 1e-9)


@pytest.mark.long
def test_every_plan_of_the_front_can_be_asked_for(found, traced, cluster):
    for point in (point for point in found if point.global_batch == traced("gpt2").batch):
        again = asked_for(point, traced, cluster)
        assert again.prediction.step_seconds <= point.prediction.step_seconds * (1 + 1e-9)
