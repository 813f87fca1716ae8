"""What the search finds on its own: the field's known ways to split a transformer, from prices."""

import json
from collections import Counter

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.bound_sharding import bind
from plait.ir.analysis.data_parallel import split_batch
from plait.ir.capture import load_source, trace
from plait.ir.lowering.localize import localize
from plait.ir.model.layout import PARTIAL, REPLICATE
from plait.ir.model.loops import SHARD_AWARE
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.plan.strategy import parse_strategy
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.sharding import AxisRule, ShardingProblem, solve
from plait.planner.sharding.axis_rules import weight_shards
from plait.planner.sharding.costs import RooflineCosts

# fmt: off
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "dtype": "bfloat16",
}
# fmt: on
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
BLOCK = "llama_decoder_layer"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Models of full width by configuration and length, traced once; nothing is allocated."""
    models = {}

    def model(config: dict, seq: int, **changes):
        key = json.dumps(config | changes, sort_keys=True), seq
        if key not in models:
            file = tmp_path_factory.mktemp("config") / "config.json"
            file.write_text(key[0])
            source = load_source(f"hf:{file}", batch=8, seq=seq)
            models[key] = trace(source.model, source.batch)
        return models[key]

    return model


def found(model, strategy: str, cluster: str = "8xh100", block: str = BLOCK):
    """Collectives of forward and of backward by kind, and how held inputs lie, by name."""
    prices = FunctionPrices(model, load_cluster(cluster))
    sharding = prices.sharding(block, parse_strategy(strategy), 1)
    function = model.function(block)
    local = localize(bind(sharding, function, prices.flow.axes[block]))
    layouts = {
        item.name: layout[1]  # after micro-batches
        for item, layout in zip(function.inputs, sharding.boundary.inputs, strict=True)
        if item.kind == "parameter"
    }
    return kinds(local.forward_ops), kinds(local.backward_ops), layouts


def kinds(ops) -> dict[str, int]:
    """What moves data: collectives, and operators that talk to other ranks themselves."""
    free = ("comm.cut", "comm.share")
    names = (
        op.target[5:]
        for op in ops
        if op.target.startswith("comm.")
        and op.target not in free
        and (op.target not in SHARD_AWARE or "over" in op.kwargs)
    )
    return dict(Counter(names))


def test_megatrons_columns_and_rows(traced):
    """Shoeybi et al. 2019: one sum after attention and one after the MLP, forward and backward."""
    forward, backward, layouts = found(traced(LLAMA, 2048), "tp=8")
    assert forward == {"all_reduce": 2}
    assert backward == {"all_reduce": 2}
    columns = [n for n, state in layouts.items() if state == (0, 0)]
    rows = [n for n, state in layouts.items() if state == (1, 0)]
    assert [n.split("_")[-3] for n in columns] == ["q", "k", "v", "gate", "up"]
    assert [n.split("_")[-3] for n in rows] == ["o", "down"]


def test_sequence_parallel_norms(traced):
    """Korthikanti et al. 2022: gathers and scatters of the sum in the place of sums."""
    forward, backward, _ = found(traced(LLAMA, 2048), "tp=8,sp")
    assert forward == {"all_gather": 2, "reduce_scatter": 2}
    assert backward.keys() == {"all_gather", "reduce_scatter"}


def test_ulysses_where_heads_are_cheaper_than_keys(traced):
    """Jacobs et al. 2023: tokens for heads before attention and back after it, for long samples."""
    forward, backward, layouts = found(traced(LLAMA, 16384), "sp=8")
    assert forward == {"all_to_all": 4}
    assert backward == {"all_to_all": 4}
    assert set(layouts.values()) == {REPLICATE}


def test_keys_are_gathered_where_heads_may_not_be_split(traced):
    """Context parallelism: keys and values to everybody, their gradients summed into pieces."""
    forward, backward, _ = found(traced(LLAMA, 2048), "cp=8")
    assert forward == {"all_gather": 2}
    assert backward == {"reduce_scatter": 2}


def test_vocabulary_parallel_embedding_and_loss(traced):
    model = traced(LLAMA, 2048)
    forward, backward, layouts = found(model, "tp=8", block="entry")
    assert (forward, backward) == ({"all_reduce": 1}, {})
    assert list(layouts.values()) == [(0, 0)]
    forward, backward, layouts = found(model, "tp=8", block="exit")
    assert (forward, backward) == ({"cross_entropy": 1}, {"all_reduce": 1})
    assert layouts["lm_head_weight"] == (0, 0)


def test_fewer_key_heads_than_devices(traced):
    """Sixteen ways and eight key heads: queries keep their heads whole, whatever that costs."""
    forward, _, layouts = found(traced(LLAMA, 2048), "tp=16", cluster="16xh100")
    assert layouts["mlp_gate_proj_weight"] == (0, 0)
    assert layouts["mlp_down_proj_weight"] == (1, 0)
    assert forward["all_reduce"] >= 1


def along_batch(model, block: str, placements: dict[int, tuple]):
    """The question of one axis of 8 that splits the batch, held inputs lying as said."""
    prices = FunctionPrices(model, load_cluster("8xh100"))
    function, flow = model.function(block), prices.flow
    boundary = split_batch(function, flow, frozenset()).boundary
    states = {}
    for position, item in enumerate(function.inputs):
        if item.kind == "activation":
            states[item.value] = (boundary.inputs[position],)
            if item.gradient is not None:
                states[item.gradient] = (boundary.gradients[position],)
    for position, item in enumerate(function.outputs):
        states[item.value] = (boundary.outputs[position],)
        states[item.tangent] = (boundary.tangents[position],)
    axes, mesh = flow.axes[block], Mesh((Axis("dp", 8),))
    costs = RooflineCosts(function, axes, mesh, prices.cluster, (1,))
    rule = AxisRule(flow.batch_factors[block], states | placements)
    problem = ShardingProblem(function, axes, mesh, (rule,), costs)
    (made,) = solve(problem).axes
    assert PARTIAL not in made.boundary.inputs
    return function, axes, made


def test_gathers_of_fully_sharded_weights(traced):
    """Zhao et al. 2023: weights in pieces are gathered before use, gradients scattered as sums."""
    model = traced(LLAMA, 2048)
    function, axes = (
        model.function(BLOCK),
        FunctionPrices(model, load_cluster("8xh100")).flow.axes[BLOCK],
    )
    placements = {i.value: weight_shards(axes, i.value, 8)[:1] for i in function.state_inputs()}
    function, axes, solution = along_batch(model, BLOCK, placements)
    used = {
        state
        for op, known, chosen in zip(function.ops, axes.ops, solution.op_splits, strict=True)
        for value, state in zip(op.operands(), known.by_name[chosen].inputs, strict=True)
        if value in placements
    }
    assert used == {REPLICATE}
    assert all(
        g == s
        for g, s in zip(solution.boundary.gradients, solution.boundary.inputs, strict=True)
        if g is not None
    )


def test_experts_apart_tokens_travel(traced):
    """Lepikhin et al. 2020: with experts in pieces, tokens go to them and come back."""
    model = traced(MIXTRAL, 2048)
    block = "mixtral_decoder_layer"
    axes = FunctionPrices(model, load_cluster("8xh100")).flow.axes[block]
    placements = {
        i.value: (REPLICATE, *weight_shards(axes, i.value, 8))
        for i in model.function(block).state_inputs()
    }
    function, axes, made = along_batch(model, block, placements)
    for op, known, chosen in zip(function.ops, axes.ops, made.op_splits, strict=True):
        if op.target.startswith("plait.experts"):
            assert known.by_name[chosen].partner is not None
    forward, backward, layouts = found(model, "ep=8", block=block)
    assert (forward, backward) == ({"experts": 1}, {"experts_backward": 1})
    assert {n for n, state in layouts.items() if state != REPLICATE} == {
        "mlp_experts_gate_up_proj",
        "mlp_experts_down_proj",
    }
