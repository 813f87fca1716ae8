"""Baselines: what names mean, and that no plan is slower than one that fits."""

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.errors import UsageError
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions, plan
from plait.planner.search.baselines import baseline_plan, parse_baselines
from plait.planner.search.driver import SearchSpace
from plait.tests.sampling import some


def test_settings_belong_to_the_name_before_them():
    cluster = load_cluster("2x8xh100")
    baselines = parse_baselines("ddp, megatron:tp=4,pp=2, fsdp,word:dp=4,tp=4,sp", cluster)
    assert [b.name for b in baselines] == ["ddp", "megatron:tp=4,pp=2", "fsdp", "word:dp=4,tp=4,sp"]
    assert [str(w) for w in baselines[1].strategies] == [
        "pp=2,dp=2,tp=4",
        "pp=2,dp=2,tp=4,sp",
        "pp=2,zero1=2,tp=4",
        "pp=2,zero1=2,tp=4,sp",
    ]
    assert {w.devices for b in baselines for w in b.strategies} == {16}


def test_hybrid_shards_inside_a_node():
    (hsdp,) = parse_baselines("hsdp", load_cluster("4x8xa100-80"))
    assert [str(w) for w in hsdp.strategies] == ["dp=4,zero3=8"]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("megatron:tp=2,pp=8,ep=32,vpp=4,cp=2", "pp=8,ep=32,cp=2,tp=2"),
        ("megatron:tp=2,pp=4,ep=16,cp=2,sp", "pp=4,dp=4,ep=16,cp=2,tp=2,sp"),
        ("megatron:tp=4,pp=4,ep=128,etp=1,sp", "pp=4,dp=2,ep=32,tp=4,sp"),
        ("megatron:tp=4,pp=1,cp=2,order=cp-tp-ep-dp-pp,sp", "dp=128,tp=4,cp=2,sp"),
        ("torchtitan:dp=4,tp=8,sp", "dp=4,zero3=32,tp=8,sp"),
        ("deepspeed:ep=8,zero=2", "zero2=128,ep=8"),
        ("hsdp:64", "dp=16,zero3=64"),
    ],
)
def test_engines_are_set_as_their_users_set_them(text, first):
    (baseline,) = parse_baselines(text, load_cluster("128x8xh100"))
    assert str(baseline.strategies[0]) == first
    assert baseline.model_chunks == (4 if "vpp" in text else None)
    assert {strategy.devices for strategy in baseline.strategies} == {1024}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("horovod", "unknown baseline 'horovod'; known: ddp"),
        ("ddp:4", "only hsdp, megatron, torchtitan, deepspeed and word take settings"),
        (
            "megatron:zero3=4",
            "megatron takes tp, pp, dp, cp, ep, etp, vpp, sp and order, not zero3",
        ),
        ("megatron:tp=2,pp=2,ep=8", "8 expert ranks do not lie inside 4 data ranks; etp=1"),
        ("megatron:tp=2,pp=2,ep=32,etp=1", "inside 4 data ranks and 2 tensor ranks"),
        ("megatron:tp=2,order=pp-tp", "pp last"),
        ("hsdp:3", "no group of the 16 devices"),
        ("word:dp=3", "for 3 devices, the cluster has 16"),
        ("", "no baseline"),
    ],
)
def test_wrong_names_are_told(text, says):
    with pytest.raises(UsageError, match=says):
        parse_baselines(text, load_cluster("2x8xh100"))


@pytest.mark.parametrize("name", some(["gpt2", "llama", "mixtral", "t5"], 4))
def test_no_plan_is_slower_than_a_baseline_that_fits(name, traced):
    model, cluster = traced(name), load_cluster("2x2xa100-80")
    answer = plan(model, cluster, PlanOptions())
    space, compared = SearchSpace.create(model, cluster, PlanOptions()), 0
    for baseline in parse_baselines("ddp,fsdp,hsdp,zero1,zero2,megatron", cluster):
        other = baseline_plan(space, baseline)
        if other is not None and other.peak_bytes <= other.memory_limit_bytes:
            assert answer.prediction.step_seconds <= other.prediction.step_seconds * (1 + 1e-9)
            compared += 1
    assert compared >= 3


def test_a_rival_that_does_not_fit_is_the_smallest(traced):
    model, cluster = traced("gpt2"), load_cluster("4xa100-80")
    space = SearchSpace.create(model, cluster, PlanOptions(memory_bytes=1 << 20))
    (baseline,) = parse_baselines("ddp", cluster)
    other = baseline_plan(space, baseline)
    assert other.peak_bytes > 1 << 20
    every = space.uniform_candidates(parse_strategy("dp=4"))
    assert other.peak_bytes == min(c.peak_bytes for c in every) < max(c.peak_bytes for c in every)
