"""Six small models through all stages, as text: traced, planned, explained, lowered and generated."""

import functools
from typing import NamedTuple

import pytest

import plait
from plait.api.plans.explanation import explain
from plait.api.plans.plan_object import with_methods
from plait.codegen.lower import LoweredFunction, lower
from plait.codegen.program import compile_program
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.lowering.overlap import Overlap
from plait.ir.model.model import Model
from plait.ir.plan.program import GeneratedProgram
from plait.ir.text.function import parse_function, parse_halves, print_function, print_halves
from plait.ir.text.model import parse_model, print_model
from plait.ir.text.plan import parse_plan, print_plan
from plait.ir.text.sharding import parse_sharding, print_sharding
from plait.ir.text.summary import calls_of
from plait.tests.ir.text.lines import without_lines

PINS = {
    "gpt2": "*:dp=2,tp=2",
    "llama": "*:pp=2,tp=2,sp",
    "mixtral": "*:ep=2,tp=2",
    "bert": "*:zero1=2,tp=2",
    "convnext": "*:dp=4",
    "t5": "*:pp=2,zero3=2",
}
CLUSTER = "4xa100-80"


class Stages(NamedTuple):
    """One model after every stage; `layer` is the function of most operators, lowered."""

    model: Model
    plan: plait.Plan
    layer: LoweredFunction
    program: GeneratedProgram


@pytest.fixture(scope="session")
def stages(traced):
    """`stages(name)`: a model of the zoo, planned for four devices under its pin and compiled."""

    @functools.cache
    def of(name: str) -> Stages:
        model = traced(name)
        plan = plait.plan(model, cluster=CLUSTER, pin=PINS[name])
        lowered = lower(plan, model, analyse_dataflow(model), Overlap.on(plan.cluster.device))
        layer = max(
            lowered, key=lambda low: calls_of(model, low.function.name) * len(low.local.ops)
        )
        return Stages(model, plan, layer, compile_program(plan, model))

    return of


@pytest.mark.parametrize("name", PINS)
def test_traced_model(stages, golden, name):
    text = print_model(stages(name).model)
    assert parse_model(text) == without_lines(stages(name).model)
    golden(text, f"{name}.1-model")


@pytest.mark.parametrize("name", PINS)
def test_plan(stages, golden, name):
    plan = stages(name).plan
    text = print_plan(plan)
    assert with_methods(parse_plan(text)) == plan
    whole = name == "gpt2"  # of the others, the summary and the decisions
    golden(text if whole else text[: text.index("\nsharding ")], f"{name}.2-plan")


@pytest.mark.parametrize("name", PINS)
def test_shardings(stages, golden, name):
    model, plan = stages(name).model, stages(name).plan
    axes = analyse_dataflow(model).axes
    texts = [
        print_sharding(s, model.function(s.function), axes[s.function]) for s in plan.shardings
    ]
    assert tuple(map(parse_sharding, texts)) == plan.shardings
    golden("\n\n".join(texts[:4]), f"{name}.4-sharding")


@pytest.mark.parametrize("name", PINS)
def test_explanation(stages, golden, name):
    golden(explain(stages(name).plan), f"{name}.3-explain")


@pytest.mark.parametrize("name", PINS)
def test_per_device_function(stages, golden, name):
    local = stages(name).layer.local
    text = print_function(local)
    assert parse_function(text) == local
    golden(text, f"{name}.5-local")


@pytest.mark.parametrize("name", PINS)
def test_forward_and_backward(stages, golden, name):
    layer = stages(name).layer
    text = print_halves(layer.halves, layer.local.types)
    assert parse_halves(text) == layer.halves
    golden(text, f"{name}.6-halves")


@pytest.mark.parametrize("name", PINS)
def test_generated_function(stages, golden, name):
    golden(
        dict(stages(name).program.files)[f"functions/{stages(name).layer.name}.py"],
        f"{name}.7-function",
    )


@pytest.mark.parametrize("name", PINS)
def test_generated_stage(stages, golden, name):
    golden(dict(stages(name).program.files)["stage_0.py"], f"{name}.8-stage")
