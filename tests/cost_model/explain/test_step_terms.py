"""The terms of a plan add up to its prediction, and every formula gives its value."""

import pytest
import torch
from msgspec.structs import replace

from plait.api.view.plans.from_schedule import step_parts
from plait.cost_model.explain.memory_terms import LEGEND, memory_term
from plait.cost_model.explain.overlap_terms import AHEAD
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.explain.term import legend
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.files.json_files import digest, dump, load
from plait.ir.plan.plan import Plan
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import parse_pin
from plait.tests import zoo
from plait.tests.codegen.device_groups import SHAPES, grouped_plan
from plait.tests.sampling import some_rows

STRATEGIES = [
    ("dp=8", "8xh100"),
    ("zero3=4,tp=2", "8xh100"),
    ("pp=2,zero1=2,tp=2,sp", "2x4xh100"),
    ("pp=4,dp=2", "2x4xa100-80"),
    ("zero2=8", "2x4xh100"),
    ("cp=4,dp=2", "local:8"),
    ("dp=8;model.layers.[0-1]:dp=4,tp=2", "8xh100"),
    ("zero3=8@2/3", "2x4xh100"),
    ("pp=2,dp=2,zero3=2@1/4", "8xh100"),
    ("zero3=4,tp=2;model.layers.[0-1]:zero3=4@3/4,tp=2", "local:8"),
]


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.llama(4, batch=16)
    return trace(module.train(), batch)


def made(model, strategy, cluster, **more):
    pins = tuple(parse_pin(part) for part in strategy.split(";"))
    return plan(model, load_cluster(cluster), PlanOptions(pins=pins, **more))


@pytest.mark.parametrize(
    ("strategy", "cluster", "micro"),
    some_rows([(*s, micro) for micro in (1, 2) for s in STRATEGIES], 5),
)
def test_the_terms_are_the_prediction(model, strategy, cluster, micro):
    plan = made(model, strategy, cluster, micro_batches=micro)
    step = step_term(plan)
    assert step.value == pytest.approx(plan.prediction.step_seconds, rel=1e-12)
    assert sum(t.value for t in step.leaves()) == pytest.approx(step.value, rel=1e-12)
    for number, stage in enumerate(plan.stages):
        memory = memory_term(plan, number)
        assert {t.name: t.value for t in memory.parts} == {n: v for n, v in stage.memory_terms if v}


def test_terms_of_device_groups_are_the_prediction():
    """Gradients that groups sum travel in copies, which explanations count as the search does."""
    module, batch = zoo.gpt2(layers=4, batch=24)
    traced = trace(module.train(), batch)
    for rows in SHAPES.values():
        plan = grouped_plan(traced, rows)
        for number, stage in enumerate(plan.stages):
            parts = {t.name: t.value for t in memory_term(plan, number).parts}
            assert parts == {name: value for name, value in stage.memory_terms if value}


def test_terms_of_several_buckets_are_the_prediction():
    """Updated weights of all but the first bucket are gathered beside the next forward."""
    with torch.device("meta"):
        module, batch = zoo.llama(2, batch=16, hidden_size=1024)
    plan = made(trace(module.train(), batch), "zero1=8", "8xh100")
    names = [term.name for term in step_term(plan).leaves() if term.value]
    assert AHEAD in names
    assert step_term(plan).value == pytest.approx(plan.prediction.step_seconds, rel=1e-12)
    parts = step_parts(plan, 0)
    assert sum(s for _, s in parts) == pytest.approx(plan.prediction.step_seconds, rel=1e-9)


@pytest.mark.parametrize(("strategy", "cluster"), some_rows([*STRATEGIES, ("tp=8", "8xh100")], 4))
def test_a_plan_read_back_keeps_its_digest(model, strategy, cluster):
    found = made(model, strategy, cluster)
    assert digest(load(dump(found, "plait/plan"), Plan, "plait/plan")) == digest(found)


@pytest.mark.parametrize(("strategy", "cluster"), some_rows(STRATEGIES, 4))
def test_formulas_give_their_values(model, strategy, cluster):
    from sympy import Symbol, sympify

    found = made(model, strategy, cluster)
    constants = {s.name: s.value for s in legend(found.cluster) if s.value is not None}
    known = {s.name for s in (*legend(found.cluster), *LEGEND)}
    terms = [step_term(found), *(memory_term(found, s) for s in range(len(found.stages)))]
    for leaf in (leaf for term in terms for leaf in term.leaves()):
        names = {n: Symbol(n) for n in (*constants, *leaf.symbols)}
        formula = sympify(leaf.formula, locals=names)
        value = formula.subs({**constants, **leaf.symbols})
        assert float(value) == pytest.approx(leaf.value, rel=1e-9, abs=1e-12), leaf
        assert {str(s) for s in formula.free_symbols} <= known, leaf


def test_every_symbol_means_one_thing(model):
    found = made(model, "pp=2,dp=4", "2x2x2xh100")
    names = [s.name for s in (*legend(found.cluster), *LEGEND)]
    assert len(names) == len(set(names))


def test_levels_of_one_name_are_told_apart(model):
    cluster = load_cluster("2x4xh100")
    far, near = (replace(link, name="my link") for link in cluster.levels)
    plan = made(model, "dp=8", "2x4xh100")
    constants = {s.name: s.value for s in legend(replace(cluster, levels=(far, near)))}
    assert constants["beta_my_link_0"] == far.bandwidth_bytes_per_second
    assert constants["beta_my_link_1"] == near.bandwidth_bytes_per_second
    step = step_term(plan, replace(cluster, levels=(far, near)))
    sent = [leaf.formula for leaf in step.leaves() if "all_reduce on" in leaf.name]
    assert sent
    assert all("beta_my_link_0" in formula for formula in sent)


def test_every_number_says_where_it_comes_from():
    constants = {s.name: s.source for s in legend(load_cluster("8xh100")) if s.value is not None}
    assert constants["P_bfloat16"] == constants["W"] == "vendor datasheet"
    assert all("measured" in constants[name] for name in ("a", "t_r", "r_gemm"))
    assert all(constants[name].startswith("assumed") for name in ("s", "w", "r_convolution"))
    assert "NVIDIA 2019" in constants["t_l"]


def test_another_cluster_asks_the_same_work(model):
    found = made(model, "zero3=4,tp=2", "8xh100")
    near, far = (step_term(found, load_cluster(c)).value for c in ("8xh100", "8x1xh100"))
    assert far > near
    fresh = made(model, "zero3=4,tp=2", "8x1xh100", micro_batches=found.micro_batches)
    assert far == pytest.approx(fresh.prediction.step_seconds, rel=1e-12)


def test_faster_devices_leave_communication(model):
    plan = made(model, "dp=8", "8xh100")
    device = replace(plan.cluster.device, memory_bandwidth_bytes_per_second=1e16)
    quick = step_term(plan, replace(plan.cluster, device=device))
    reductions = [t.value for t in step_term(plan).leaves() if "all_reduce" in t.name]
    assert [t.value for t in quick.leaves() if "all_reduce" in t.name] == reductions
    assert quick.value < step_term(plan).value
