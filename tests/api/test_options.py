"""An option of planning is declared once, and is then a flag, a keyword and a line of help."""

import argparse
import inspect
import typing

import msgspec
import pytest

import plait
from plait.api.commands import plan as plan_command
from plait.api.options import declared_options, given_options, options_from
from plait.ir.plan.routing import parse_routing
from plait.planner.question.options import PlanOptions
from plait.planner.question.pins import parse_pin

# Fields that programs set, and arguments of the command or function that are no options of the search.
INTERNAL = {"bounds", "fractions", "model_chunks", "probed_optimizer"}
COMMAND_ONLY = {
    *("help", "source", "batch", "seq", "json"),
    *("cluster", "front", "buckets", "output", "print_after"),
}
FUNCTION_ONLY = {"model", "batch", "cluster", "loss_fn", "optimizer_args", "param_groups"}
RUN_TIME = {
    *("optimizer", "nonfinite", "plan", "seed", "inputs", "weights"),
    *("timeout_seconds", "dump_folder", "check_every", "compile", "other_plans"),
}


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    return parser


def test_every_field_is_declared_or_internal():
    fields = {field.name for field in msgspec.structs.fields(PlanOptions)}
    assert fields == {d.field for d in declared_options().values()} | INTERNAL


def test_the_flags_are_the_options(parser):
    actions = {action.dest: action for action in parser._actions}
    assert set(actions) - COMMAND_ONLY == set(declared_options())
    for name, declared in declared_options().items():
        assert actions[name].option_strings == [declared.flag] == ["--" + name.replace("_", "-")]
        assert declared.option.help in actions[name].help
    text = " ".join(parser.format_help().split())
    for declared in declared_options().values():
        assert declared.flag in text
        assert " ".join(declared.option.help.split()) in text


@pytest.mark.parametrize(
    ("function", "own", "without"),
    [
        (plait.plan, FUNCTION_ONLY, set()),
        (plait.parallelize, FUNCTION_ONLY | RUN_TIME, {"global_batch", "optimizer", "seed"}),
    ],
)
def test_the_keywords_are_the_options(function, own, without):
    parameters = inspect.signature(function).parameters
    options = {n: d for n, d in declared_options().items() if n not in without}
    assert set(parameters) == own | set(options)
    for name, declared in options.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == declared.default
        assert f"    {name}: " in function.__doc__
        assert declared.option.help.split()[0] in function.__doc__


def test_flags_and_keywords_mean_the_same(parser):
    line = (
        "model.json --cluster 8xh100 --engine torch --global-batch 16 --memory 72GiB --precision bf16 "
        "--optimizer sgd --roles dp,tp --memory-actions keep,recompute --compress auto --quality all "
        "--routing zipf:1.2 --expert-slots 2 --optimizer-on host "
        "--micro-batches 4 --gradient-precision fp32 --schedule 1f1b --pin *:dp=4 --pin block:tp=2 "
        "--time-limit 2.5 --seed 7 --objective dollars --budget 1.5 --at-least 3 --headroom 0.1 "
        "--simpler-within 0.02"
    )
    keywords = {
        "engine": "torch",
        "global_batch": 16,
        "memory": 72 << 30,
        "precision": "bf16",
        "gradient_precision": "fp32",
        "optimizer": "sgd",
        "roles": ("dp", "tp"),
        "memory_actions": ["keep", "recompute"],
        "compress": "auto",
        "routing": parse_routing("zipf:1.2"),
        "expert_slots": 2,
        "optimizer_on": "host",
        "quality": "all",
        "micro_batches": 4,
        "schedule": "1f1b",
        "pin": [parse_pin("*:dp=4"), "block:tp=2"],
        "time_limit": 2.5,
        "seed": 7,
        "objective": "dollars",
        "budget": 1.5,
        "at_least": 3.0,
        "headroom": 0.1,
        "simpler_within": 0.02,
    }
    assert set(keywords) == set(declared_options())
    flags = given_options(parser.parse_args(line.split()))
    assert options_from(flags) == options_from(keywords)
    values = msgspec.structs.asdict(options_from(flags))
    assert all(
        value != getattr(PlanOptions(), f) for f, value in values.items() if f not in INTERNAL
    )


def test_nothing_given_and_none_are_the_defaults(parser):
    assert given_options(parser.parse_args(["model.json", "--cluster", "8xh100"])) == {}
    assert options_from(dict.fromkeys(declared_options())) == options_from({}) == PlanOptions()


def test_declared_types_are_those_of_the_flags():
    """A number's flag reads a number; a field that is neither number nor text has a parser."""
    for declared in declared_options().values():
        kinds = {declared.annotation, *typing.get_args(declared.annotation)} - {type(None)}
        if declared.option.parse is None:
            assert kinds & {declared.number or str}


@pytest.mark.parametrize("function", [plait.plan, plait.parallelize])
def test_unknown_keywords_name_the_nearest(function):
    fixed = {"cluster": "8xh100"} if function is plait.plan else {}
    with pytest.raises(TypeError, match=r"'micro_batch'; did you mean 'micro_batches'\?"):
        function(None, None, micro_batch=4, **fixed)
    with pytest.raises(TypeError, match=r"'zzz'; there are: .*precision"):
        function(None, None, zzz=4, **fixed)


def test_options_beside_a_plan_are_refused():
    with pytest.raises(plait.UsageError, match="precision"):
        plait.parallelize(None, None, plan="plan.json", precision="bf16")
