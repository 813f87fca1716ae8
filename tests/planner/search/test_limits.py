"""A search that is stopped gives the best so far; one without a plan says what would give one."""

from unittest import mock

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import InfeasibleError, LimitError, UsageError
from plait.planner import PlanOptions, plan
from plait.planner.search.driver import SearchSpace
from plait.planner.search.first_plan import MOST_TRIED, first_fitting, least_bytes, never_fits
from plait.tests.faults import random_models


def test_time_that_is_up_leaves_a_plan_or_says_so(traced):
    model, cluster = traced("gpt2"), load_cluster("2x2xh100")
    first = plan(model, cluster, PlanOptions(time_limit_seconds=1e-9))
    assert not first.complete
    assert first.peak_bytes <= first.memory_limit_bytes
    tight = (first.peak_bytes + cluster.device.runtime_overhead_bytes) // 2
    with pytest.raises(LimitError, match="time was up: nothing that fits was found yet"):
        plan(model, cluster, PlanOptions(time_limit_seconds=1e-9, memory_bytes=tight))
    with pytest.raises(InfeasibleError):
        plan(model, cluster, PlanOptions(memory_bytes=cluster.device.runtime_overhead_bytes))
    whole = plan(model, cluster, PlanOptions(time_limit_seconds=1e9))
    assert whole.complete
    with pytest.raises(UsageError, match="not a number of seconds"):
        plan(model, cluster, PlanOptions(time_limit_seconds=0))


@pytest.mark.parametrize("prices", [1, 3])  # the first plan's alone, and some of the search
def test_an_interrupt_ends_the_search_with_the_best_so_far(traced, monkeypatch, prices):
    model, cluster = traced("gpt2"), load_cluster("2x2xh100")
    whole = plan(model, cluster, PlanOptions())
    price, priced = SearchSpace.uniform_candidates, []

    def interrupted(self, strategy, counts=()):
        if len(priced) == prices:
            raise KeyboardInterrupt
        priced.append(strategy)
        return price(self, strategy, counts)

    monkeypatch.setattr(SearchSpace, "uniform_candidates", interrupted)
    answer = plan(model, cluster, PlanOptions())
    assert not answer.complete
    assert answer.status == "feasible"
    assert answer.prediction.step_seconds >= whole.prediction.step_seconds
    # the gap bounds what the whole search gains
    assert answer.prediction.step_seconds * (1 - answer.gap) <= whole.prediction.step_seconds


def test_changes_to_what_does_not_fit_do_fit(traced):
    model, cluster = traced("gpt2"), load_cluster("4xa100-80")
    floor = cluster.device.runtime_overhead_bytes
    least = plan(model, cluster, PlanOptions()).prediction.step_seconds
    roles, actions = ("dp",), ("keep",)
    whole = SearchSpace.create(model, cluster, PlanOptions(roles=roles, memory_actions=actions))
    whole.run()
    budget = (min(c.peak_bytes for c in whole.candidates) - floor) * 6 // 10 + floor
    options = PlanOptions(roles=roles, memory_actions=actions, memory_bytes=budget)
    with pytest.raises(InfeasibleError, match="tried --roles dp,zero3") as caught:
        plan(model, cluster, options)
    changes = {fix["change"]: fix for fix in caught.value.report["fixes"]}
    (memory,) = (fix for change, fix in changes.items() if change.startswith("--memory "))
    assert memory["peak"] > budget
    assert changes["all roles"]["fits"]
    assert all(
        fix["peak"] <= budget and fix["step_time_s"] >= least * 0.1
        for fix in changes.values()
        if fix["fits"] and fix is not memory
    )
    found = plan(model, cluster, PlanOptions(memory_actions=actions, memory_bytes=budget))
    assert found.prediction.step_seconds == pytest.approx(changes["all roles"]["step_time_s"])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_first_plan_takes_few_prices(traced, share):
    """The time of a first plan is that of a few prices, whether one fits or not."""
    cluster = load_cluster("2x4xh100")
    limit = cluster.device.runtime_overhead_bytes + int(share * (1 << 30))
    space = SearchSpace.create(traced("gpt2"), cluster, PlanOptions(memory_bytes=limit))
    with mock.patch.object(space.pricer, "assemble", wraps=space.pricer.assemble) as priced:
        first = first_fitting(space)
    assert (first is not None) == (share > 0)
    assert never_fits(space) == (share == 0)
    assert 1 <= priced.call_count <= 20 * MOST_TRIED


def check_least_states(model, roles, optimizer="adamw"):
    """No candidate of a whole space needs less than its states are said to; the fraction that they are
    of the smallest."""
    cluster = load_cluster("2x2xh100")
    space = SearchSpace.create(model, cluster, PlanOptions(roles=roles, optimizer=optimizer))
    space.slow_factor = 1e9  # nothing is skipped
    space.run()
    least = least_bytes(space).total_bytes
    smallest = min(c.peak_bytes for c in space.candidates)
    assert smallest >= least + cluster.device.runtime_overhead_bytes
    return least / (smallest - cluster.device.runtime_overhead_bytes)


def test_no_candidate_is_smaller_than_its_states(traced):
    assert check_least_states(traced("gpt2"), ("dp", "zero1")) > 0.2


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_no_candidate_of_a_random_model_is_smaller_than_its_states(seed):
    module, batch = random_models.build(seed)
    model = trace(module, batch, precision=(None, "bf16")[seed % 2])
    for roles in (("dp",), ("zero1", "pp"), ("zero2", "tp"), ("zero3", "pp", "tp"), ("tp", "cp")):
        assert check_least_states(model, roles, ("adamw", "sgd", "adafactor")[seed % 3]) > 0
