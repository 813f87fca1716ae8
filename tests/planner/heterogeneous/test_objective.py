"""Objectives and limits: the least dollars and energy of all sets of devices, limits that are kept."""

import pytest
from msgspec.structs import replace

from plait.cost_model.hardware import load_any_cluster, load_cluster
from plait.cost_model.rates import with_rates
from plait.ir.capture import trace
from plait.ir.devices.cluster import Rates
from plait.ir.devices.mixed import mixed_cluster
from plait.ir.errors import InfeasibleError, UsageError
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan
from plait.planner.heterogeneous.objective import plan_for_objective, smaller_clusters
from plait.tests import zoo


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.gpt2(1, batch=4, seq=8)
    return trace(module, batch)


def with_prices(cluster, *rates):
    parts = [replace(p, rates=r) for p, r in zip(cluster.parts, rates, strict=True)]
    return mixed_cluster(cluster.name, parts, cluster.levels[0])


def test_the_objective_is_the_least_of_all_sets_of_devices(model):
    cluster = with_prices(
        load_any_cluster("2xh100+1xa100-40"),
        Rates(9.0, watts=700, idle_watts=100),
        Rates(1.0, watts=300, dollars_per_byte=1e-9),
    )
    plans = {str(c): plan(model, c, PlanOptions()) for c in smaller_clusters(cluster)}
    assert {p.mesh.size for p in plans.values()} >= {1, 2}

    def best(**limits):
        answer = plan_for_objective(cluster, PlanOptions(**limits), lambda c, _: plans[str(c)])
        verify_plan(answer)
        return answer.prediction

    predictions = [p.prediction for p in plans.values()]
    least = min(p.dollars_per_step for p in predictions)
    assert best(objective="dollars").dollars_per_step == least
    joules = min(p.joules_per_step for p in predictions)
    assert best(objective="energy").joules_per_step == joules
    rate = max(p.samples_per_second for p in predictions)
    assert best(objective="dollars", at_least=rate * 0.999).samples_per_second >= rate * 0.999
    within = [p for p in predictions if p.dollars_per_step <= least * 1.3]
    limited = best(budget=least * 1.3)
    assert limited.step_seconds == min(p.step_seconds for p in within)
    with pytest.raises(InfeasibleError, match="budget"):
        best(budget=least * 0.5)
    with pytest.raises(InfeasibleError, match="samples/s"):
        best(at_least=rate * 2)


def test_a_uniform_cluster_may_be_used_in_part(model):
    cluster = replace(load_cluster("2xh100"), rates=Rates(2.0))
    one = plan(model, cluster, PlanOptions(objective="dollars"))
    assert one.mesh.size == 1
    assert one.prediction.dollars_per_step == pytest.approx(
        one.prediction.step_seconds * 2.0 / 3600
    )
    assert with_rates(one) == one


def test_rates_that_are_not_said_are_asked_for(model):
    with pytest.raises(UsageError, match="dollars_per_hour"):
        plan(model, load_cluster("2xh100"), PlanOptions(objective="dollars"))
    with pytest.raises(UsageError, match="watts"):
        plan(model, load_cluster("2xh100"), PlanOptions(objective="energy"))
    with pytest.raises(UsageError, match="budget -1"):
        plan(model, load_cluster("2xh100"), PlanOptions(budget=-1.0))
