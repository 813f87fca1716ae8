"""What a layer saves: the cheapest set within its bytes, against trying every set."""

from collections import Counter
from itertools import combinations

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.liveness import produced_values
from plait.ir.capture import trace
from plait.ir.lowering.forward_backward import partition
from plait.planner import PlanOptions, plan
from plait.planner.activations.recompute_ilp import select_saved
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.candidate import CallPoint
from plait.tests import zoo


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    module, batch = getattr(zoo, request.param)(4, batch=16)
    return trace(module.train(), batch)


def layer_table(model):
    (name, _), *_ = Counter(call.function for call in model.calls).most_common()
    prices = FunctionPrices(model, load_cluster("local:1"))
    assert prices.call_price(name, CallPoint((), model.batch)) is not None
    return prices.table(name, CallPoint((), model.batch)).costs


def cost(table, variant):
    """Seconds of the forward operators that backward runs again, and the bytes that wait."""
    local = table.local_functions[1]
    graphs = partition(local, variant)
    again = [
        op for op in graphs.backward if produced_values((op,)) & produced_values(local.forward_ops)
    ]
    seconds = sum(table.pricer.op(local, op).seconds for op in again)
    return seconds, sum(local.types[v].bytes for v in {table.roots[v] for v in graphs.saved})


def test_more_bytes_are_never_slower_and_the_ends_are_the_ends(model):
    table = layer_table(model)
    keep, again = cost(table, "keep"), cost(table, "recompute")
    found = [cost(table, select_saved(table, part)) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for part, (_, size) in zip((0.0, 0.25, 0.5, 0.75, 1.0), found, strict=True):
        assert size <= again[1] + part * (keep[1] - again[1]) + 1
    seconds = [s for s, _ in found]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] == pytest.approx(again[0])
    assert seconds[-1] == pytest.approx(keep[0])
    assert seconds[1] < again[0]


def test_no_small_set_is_cheaper(model):
    """Every set of up to two more values than the inputs, within the bytes."""
    table = layer_table(model)
    local = table.local_functions[1]
    best_seconds, _ = cost(table, select_saved(table, 0.2))
    least, most = cost(table, "recompute")[1], cost(table, "keep")[1]
    budget = least + 0.2 * (most - least)
    roots = sorted(
        {table.roots[v] for v in produced_values(local.forward_ops)}
        & produced_values(local.forward_ops)
    )
    for count in (1, 2):
        for chosen in combinations(roots, count):
            seconds, size = cost(table, chosen)
            assert size > budget or seconds >= best_seconds * (1 - 1e-6)


def test_a_tight_budget_is_met_by_saving_a_part(model):
    cluster = load_cluster("local:1")
    free = plan(model, cluster, PlanOptions(memory_actions=("keep",), micro_batches=1))
    least = plan(model, cluster, PlanOptions(memory_actions=("recompute",), micro_batches=1))
    budget = (free.stages[0].peak_bytes * 2 + least.stages[0].peak_bytes) // 3
    whole = least.prediction.step_seconds
    asked = PlanOptions(memory_actions=("keep", "recompute"), memory_bytes=budget, micro_batches=1)
    made = plan(model, cluster, asked)
    assert made.stages[0].peak_bytes <= budget
    assert free.prediction.step_seconds < made.prediction.step_seconds < whole
    assert any(layers.saved for layers in made.layers)
