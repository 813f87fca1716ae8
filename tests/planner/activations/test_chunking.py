"""Which functions run in pieces, along what, and that pieces need not talk to each other."""

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.bound_sharding import bind
from plait.ir.capture import trace
from plait.ir.lowering.chunk import refine_axes
from plait.ir.lowering.localize import localize
from plait.ir.model.mesh import CHUNK
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions, plan
from plait.planner.activations.ladder import CHUNKED_ACTIONS
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.candidate import CallPoint
from plait.tests import zoo


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def prices(request):
    module, batch = getattr(zoo, request.param)(2, batch=8, seq=16)
    return FunctionPrices(trace(module.train(), batch), load_cluster("local:8"))


def test_heads_run_in_chunks_of_tokens_and_layers_in_chunks_of_samples(prices):
    chunker, repeated = prices.tables.chunker, [c.function for c in prices.model.calls]
    for function in prices.model.functions:
        if function.differentiable:
            attends = any("attention" in op.target for op in function.ops)
            assert chunker.by_tokens(function) is not attends, function.name
        else:
            assert chunker.by_tokens(function) is None
    assert len(repeated) > len(prices.functions)


@pytest.mark.parametrize("strategy_text", ["dp=8", "tp=4,sp", "sp=4", "cp=4", "dp=2,tp=2,sp"])
def test_chunks_do_not_talk_to_each_other(prices, strategy_text):
    strategy = parse_strategy(strategy_text)
    for function in prices.model.functions:
        sharding = prices.sharding(function.name, strategy, 1)
        form = bind(sharding, function, prices.flow.axes[function.name])
        made = prices.tables.chunker.chunk(form, 2)
        if made is None:
            continue
        local, whole = made.local, localize(form)
        over = [op for op in local.ops if op.target.startswith("comm.") and CHUNK in op.args]
        assert all(op.target in ("comm.cut", "comm.share") for op in over)
        assert sum(t.bytes for t in local.types) < sum(t.bytes for t in whole.types)


def test_heads_of_sharded_tokens_are_divided_inside_the_devices_parts(prices):
    """Tokens that tp gathers inside: a piece is a part of every device's tokens."""
    head = next(f for f in prices.model.functions if f.outputs and f.name == "exit")
    sharding = prices.sharding(head.name, parse_strategy("tp=4,sp"), 1)
    axes = prices.flow.axes[head.name]
    form = bind(sharding, head, axes)
    division = prices.tables.chunker.chunk(form, 4).chunking
    assert division.outer == 4
    refined = refine_axes(head, axes, dict(division.value_shards), division.outer)
    for value, (dim, part) in division.value_shards:
        assert refined.factors[value][dim][part : part + 2] == (
            4,
            axes.factors[value][dim][part] // 4,
        )
    assert prices.tables.chunker.chunk(form, 8) is None  # 16 tokens are 4 x 4


def worst(cost):
    """Bytes at a call's worst moment, with what it leaves for backward."""
    return max(cost.forward.peak_bytes, cost.backward.peak_bytes) + cost.saved_bytes


def test_chunks_lower_the_peak_at_little_time(prices):
    for axes in CHUNKED_ACTIONS[:2]:
        keep = prices.call_price("exit", CallPoint((), 8)).cost
        cost = prices.call_price("exit", CallPoint((), 8, axes)).cost
        assert cost.saved_bytes == 0
        assert worst(cost) < worst(keep)
        assert cost.forward.flops == pytest.approx(keep.forward.flops, rel=1e-4)
        assert cost.backward.flops > keep.backward.flops  # forward again


def test_host_memory_limits_what_waits_there(prices):
    cluster = load_cluster("8xh100")
    asked = PlanOptions(memory_actions=("offload",), micro_batches=1)
    answer = plan(prices.model, cluster, asked)
    waiting = {str(x.memory) for x in answer.layers if not x.batch_only}
    assert waiting <= {"offload", "keep"}
    assert "offload" in waiting
    assert 0 < max(s.host_bytes for s in answer.stages) <= cluster.device.host_memory_bytes
