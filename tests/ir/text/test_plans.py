"""Plans of every kind are read back from their text; broken text says line and column."""

import pytest
from msgspec.structs import replace

import plait
from plait.api.plans.plan_object import with_methods
from plait.ir.errors import FileError
from plait.ir.text.plan import parse_plan, print_plan

CASES = {
    "compressed": {
        "cluster": "2x4xrtx-titan",
        "compress": "auto",
        "quality": "all",
        "global_batch": 16,
    },
    "interleaved": {
        "cluster": "2xh100",
        "pin": "*:pp=2",
        "schedule": "interleaved",
        "micro_batches": 4,
    },
    "in chunks": {"cluster": "2xh100", "pin": "*:dp=2", "memory_actions": ("split 2",)},
    "saved in part": {"cluster": "2xh100", "pin": "*:dp=2", "memory_actions": ("save 50%",)},
    "on the host": {"cluster": "2xh100", "pin": "*:dp=2", "memory_actions": ("offload 50%",)},
    "a fraction": {"cluster": "4xh100", "pin": "*:zero3=2@1/2,tp=2"},
    "two strategies": {"cluster": "4xh100", "pin": ["*.0:dp=4", "*.1:dp=2,tp=2"]},
    "one device": {"cluster": "1xh100"},
}


@pytest.mark.parametrize("case", CASES)
def test_plans_are_read_back(traced, case):
    plan = plait.plan(traced("gpt2"), **CASES[case])
    text = print_plan(plan)
    assert with_methods(parse_plan(text)) == plan
    assert print_plan(parse_plan(text)) == text


@pytest.fixture(scope="module")
def plan(traced):
    return plait.plan(traced("gpt2"), cluster="2xh100", pin="*:tp=2")


def test_names_are_data(plan):
    odd = replace(
        plan, model='a "b"\n# c', calls=("", "none", "%3", "é ✓", "stage"), source="amounts"
    )
    assert parse_plan(print_plan(odd)) == parse_plan(print_plan(with_methods(odd))) != plan
    assert with_methods(parse_plan(print_plan(odd))) == odd


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("\nplan GPT2", "\nplans GPT2", r"line \d+, column 1: 'plan' expected"),
        (
            "micro_batches = 1",
            "micro_batches = one",
            r"line \d+, column 19: Expected `int`, got `str`",
        ),
        ("memory_limit_bytes", "memory_limit", "expected, not 'memory_limit'"),
        ("keep  #", "kept  #", "'kept'"),
        ("sharding 0 keep", "sharding keep", "the number of a sharding expected, not 'keep'"),
        ("over tp", "over dp", r"an axis of the mesh \(micro, tp\) expected, not 'dp'"),
        ("S(", "S[", r"'\(' expected, not '\['|closes"),
        ("step_seconds=", "step_second=", "unknown field 'step_second'"),
        ("stage 0\n", "stage 1\n", "stage 0 expected, not '1'"),
    ],
)
def test_what_is_broken_says_where(plan, before, after, says):
    text = print_plan(plan)
    assert before in text
    with pytest.raises(FileError, match=says) as error:
        parse_plan(text.replace(before, after, 1))
    assert str(error.value).startswith("line ")
