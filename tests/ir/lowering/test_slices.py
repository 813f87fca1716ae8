"""Weights under the role `slice`: sharded where products alone read them, and never whole on a rank."""

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.analysis.sliced_weights import shards_of, sliced_weights
from plait.ir.lowering.products import slices
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions
from plait.planner.search.driver import SearchSpace

LIMIT = 3000


def layer(traced, name, function):
    model = traced(name)
    flow = analyse_dataflow(model)
    whole = flow.graph.functions[function]
    dims = sliced_weights(flow)[function]
    names = {i.name: dims[i.value] for i in whole.inputs if i.value in dims}
    return flow.axes[function], whole, dims, names


def test_weights_of_products_are_in_shards_along_their_results(traced):
    """Linear maps keep them as [out, in], the convolutions of GPT-2 as [in, out]; norms stay whole."""
    _, _, _, names = layer(traced, "llama", "llama_decoder_layer")
    assert set(names.values()) == {0}
    assert len(names) == 7
    axes, whole, dims, names = layer(traced, "gpt2", "gpt2_block")
    assert set(names.values()) == {1}
    assert len(names) == 4
    (attention,) = (i.value for i in whole.inputs if i.name.endswith("c_attn_weight"))
    assert shards_of(axes, dims, 2)[attention] == (1, 1)  # 3 of queries, keys, values do not divide


def test_a_weight_that_a_look_up_reads_too_is_not(traced):
    model = traced("gpt2")
    flow = analyse_dataflow(model)
    vectors = {name: set(dims) for name, dims in sliced_weights(flow).items()}
    tied = {
        i.value
        for i in flow.graph.functions["exit"].inputs
        if "wte" in i.name or "lm_head" in i.name
    }
    assert tied
    assert vectors["exit"].isdisjoint(tied)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_rank_has_more_of_a_weight_than_a_slice(name, traced, monkeypatch):
    """Neither of the weight nor of its gradient, until it is reduced."""
    monkeypatch.setattr(slices, "SLICE_BYTES", LIMIT)
    space = SearchSpace.create(traced(name), load_cluster("local:4"), PlanOptions())
    shardings = space.pricer.function_prices.shardings
    function = {"llama": "llama_decoder_layer", "gpt2": "gpt2_block"}[name]
    sharding = shardings.sharding(function, parse_strategy("slice=4"), 1)
    local = shardings.local_function(sharding)
    sent = [op for op in local.ops if op.target in (slices.GATHER, slices.SCATTER)]
    sizes = [
        local.types[op.results[0] if op.target == slices.GATHER else op.operands()[0]].bytes
        for op in sent
    ]
    weights = [shardings.functions[function].types[i.value] for i in local.inputs]
    assert 0 < max(sizes) <= LIMIT < max(t.bytes for t in weights)
    total = sum(sizes[i] for i, op in enumerate(sent) if op.target == slices.SCATTER)
    gradients = [
        local.types[i.value].bytes for i in local.inputs if len(local.types[i.value].shape) == 2
    ]
    assert total == 4 * sum(gradients)
