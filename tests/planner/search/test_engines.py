"""Plans for an engine stay within what it can run."""

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from plait.cost_model.execution_model import engine_execution
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import UsageError
from plait.ir.plan.engines import ENGINES
from plait.ir.plan.memory_action import MemoryAction
from plait.ir.plan.strategy import parse_strategy
from plait.planner import plan
from plait.planner.question.options import PlanOptions
from plait.planner.question.pins import pin_all
from plait.planner.question.ranking import ranked
from plait.planner.search.driver import SearchSpace
from plait.planner.search.to_plan import assemble
from plait.tests import zoo


@pytest.fixture(scope="module")
def space():
    module, batch = zoo.llama(2, batch=8)
    model = trace(module.train(), batch)
    return SearchSpace.create(model, load_cluster("4xh100"), PlanOptions(memory_bytes=1))


@pytest.mark.parametrize("name", ENGINES)
def test_every_candidate_is_one_that_the_engine_can_run(space, name):
    engine, runtime = ENGINES[name], space.cluster.device.runtime_overhead_bytes
    tight = space.with_options(engine=name, memory_bytes=runtime + (9 << 20))
    tight.run()
    assert tight.candidates
    for candidate in tight.candidates:
        assert not any(engine.refusal(s) for s in candidate.strategies)
        schedule = candidate.assignment.schedule
        assert engine.schedule_refusal(candidate.strategies[0], schedule) is None
        assert all(engine.allows_action(d.memory) for d in candidate.decisions)
        if engine.mixes != "all":
            assert len(candidate.strategies) == 1
        if engine.mixes == "none":
            assert len(candidate.decisions) == 1
    assembled = assemble(tight, next(ranked(tight.candidates, tight.memory_limit_bytes)))
    assert assembled.engine == name
    assert step_term(assembled).value == pytest.approx(assembled.prediction.step_seconds)


@pytest.mark.parametrize(
    ("engine", "strategy", "reason"),
    [
        ("megatron", "pp=2,zero3=4", "Megatron-FSDP"),
        ("megatron", "zero1=2,zero2=4", "one zero stage"),
        ("accelerate", "pp=2,zero3=4", "no pp"),
        ("accelerate", "dp=2,tp=4", "replicas alone"),
        ("accelerate", "zero3=2,tp=4,sp", "no sp beside tp"),
        ("torch", "zero3=4,cp=2", "kernels of CUDA alone"),
        ("deepspeed", "zero3=4,tp=2", "AutoTP"),
        ("deepspeed", "pp=2,zero2=4", "pipelines"),
        ("torchtitan", "tp=2,zero3=4", "from the outside in"),
        ("torchtitan", "zero3=4@1/2,tp=2", "whole weights"),
        ("torch", "zero3=4,sp=2", "sp has no size"),
        ("torch", "pp=2,zero2=2,tp=2,sp", "no tp=N,sp beside pp"),
        ("galvatron", "dp=2,zero3=4", "one of"),
    ],
)
def test_pins_that_the_engine_cannot_run_are_refused_by_name(engine, strategy, reason):
    with pytest.raises(UsageError, match=reason):
        ENGINES[engine].check(parse_strategy(strategy))


def test_weights_that_are_sharded_again_by_then_have_no_second_part_of_backward(space):
    pinned = space.with_options(
        engine="torch", memory_bytes=None, pins=pin_all("pp=2,zero3=2"), schedule="zb-h1"
    )
    with pytest.raises(UsageError, match="no zb-h1 beside zero3"):
        pinned.run()
    free = space.with_options(engine="torch", memory_bytes=None, pins=pin_all("pp=2,zero3=2"))
    free.run()
    assert {c.assignment.schedule for c in free.candidates} <= {"1f1b", "interleaved", "gpipe"}


@pytest.mark.long
@pytest.mark.parametrize("engine", ["plait", "megatron", "torchtitan", "torch"])
@pytest.mark.parametrize("strategy", ["pp=2,dp=4", "pp=2,dp=2,tp=2", "dp=4,tp=2"])
def test_terms_of_experts_and_stages_add_up_to_the_step(engine, strategy):
    """Launches that a device waits for, stalls of experts, and sends beside compute count."""
    model = trace(*zoo.mixtral(4, batch=64))
    options = PlanOptions(engine=engine, pins=pin_all(strategy), micro_batches=8, schedule="1f1b")
    chosen = plan(model, load_cluster("2x4xh100"), options)
    assert step_term(chosen).value == pytest.approx(chosen.prediction.step_seconds)


class Untransposed(nn.Module):
    """A layer whose weights are no linear layer's: input features come first."""

    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(64, 64)) for _ in range(2))

    def forward(self, x):
        return x + torch.tanh(x @ self.up) @ self.down


def test_a_weight_that_no_style_splits_is_refused_with_a_change_that_fits():
    module = nn.Sequential(*(Untransposed() for _ in range(4)))
    model = trace(module, (torch.randn(8, 64),), lambda output, _: output.square().mean())
    options = PlanOptions(engine="torch", pins=pin_all("tp=4"))
    with pytest.raises(UsageError, match="no ParallelStyle splits") as refused:
        plan(model, load_cluster("4xh100"), options)
    (fix,) = refused.value.report["fixes"]
    assert fix["fits"]
    assert fix["change"] == "--engine plait"
    free = plan(model, load_cluster("4xh100"), replace(options, pins=()))
    assert not any(s.size("tp") > 1 for s in free.strategies)


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(space):
    options = PlanOptions(pins=pin_all("dp=4"), micro_batches=3)
    with pytest.raises(UsageError) as refused:
        plan(space.pricer.model, space.cluster, options)
    assert refused.value.report["fixes"][0]["fits"]


def test_compression_and_actions_of_generated_programs_are_refused():
    with pytest.raises(UsageError, match="compressed"):
        PlanOptions(engine="torch", compress="sdp4bit").check()
    pin = replace(pin_all("dp=8")[0], memory=MemoryAction.parse("offload"))
    with pytest.raises(UsageError, match="offload"):
        PlanOptions(engine="megatron", pins=(pin,)).check()
    with pytest.raises(UsageError, match="offload"):
        PlanOptions(engine="megatron", memory_actions=("offload",)).check()
    with pytest.raises(UsageError, match="interleaved"):
        PlanOptions(engine="deepspeed", schedule="interleaved").check()


def test_strategies_that_engines_run():
    for engine, strategy in (
        ("megatron", "pp=2,zero1=2,ep=2,cp=2,tp=2,sp"),
        ("torchtitan", "pp=2,dp=2,zero3=2,ep=2,cp=2,tp=2,sp"),
        ("torch", "dp=2,zero2=2,tp=2"),
        ("deepspeed", "zero3=8"),
        ("accelerate", "dp=2,zero3=2,cp=2,tp=2"),
        ("galvatron", "pp=2,zero3=2,tp=2,sp"),
    ):
        assert ENGINES[engine].refusal(parse_strategy(strategy)) is None


def test_engines_have_their_own_speed(space):
    """The same strategy on engines that overlap, and on one that does not."""
    pinned = {
        name: space.with_options(engine=name, pins=pin_all("zero3=4"), memory_bytes=None)
        for name in ("plait", "torch", "megatron")
    }
    seconds = {name: min(c.step_seconds for c in s.run()) for name, s in pinned.items()}
    assert len(set(seconds.values())) == 3
    assert pinned["torch"].pricer.function_prices.execution == replace(
        engine_execution("torch"), even_layers=False
    )


def test_a_part_offloaded_is_for_engines_that_save_a_part():
    partial = MemoryAction.parse("offload 50%")
    assert ENGINES["plait"].allows_action(partial)
    assert ENGINES["torch"].allows_action(MemoryAction.parse("offload"))
    assert not ENGINES["torch"].allows_action(partial)
