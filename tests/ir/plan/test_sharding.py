"""Operator splits are names: they print, parse, and are found again where loops are reordered."""

import pytest

from plait.ir.analysis.axes import analyse
from plait.ir.analysis.bound_sharding import resolve
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.errors import MismatchError
from plait.ir.plan.sharding import (
    AxisSharding,
    Boundary,
    LoopFactor,
    OpSplit,
    boundary_values,
    stack_boundary,
)

TEXTS = (
    "replicate", "split n", "split n.1", "split tokens+experts", "split a0.2+b", "partial 0,1",
    "partial 3", "partial", "#0", "#12",
)  # fmt: skip
NAMES = ("gpt2", "mixtral", "swin", "mamba")


@pytest.mark.parametrize("text", TEXTS)
def test_a_split_is_its_text(text):
    split = OpSplit.parse(text)
    assert str(split) == text
    assert split == OpSplit.parse(text)
    assert split.replicates == (text in ("replicate", "#0"))


@pytest.mark.parametrize(
    "text",
    ["", "split", "split ", "split n.0", "split n+", "split a+b+c", "split 0", "partial x", "#", "#-1",
     "Replicate", "partial 01", "split n ", "split n.١"],
)  # fmt: skip
def test_nothing_else_is_a_split(text):
    with pytest.raises(ValueError, match="operator's split"):
        OpSplit.parse(text)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_name_of_its_own(name, traced):
    for function in traced(name).functions:
        for known in analyse_dataflow(traced(name)).axes[function.name].ops:
            assert len(known.by_name) == len(known.options)
            for number, option in enumerate(known.options):
                assert known.option(OpSplit.parse(str(option.name))) is option
                assert known.option(OpSplit(position=number)) is option
            assert known.options[0].name == OpSplit()


def test_an_unknown_split_is_refused_with_the_known_ones(traced):
    function = traced("gpt2").functions[0]
    axes = analyse(function)
    names = [(known.options[0].name,) for known in axes.ops]
    names[1] = (OpSplit((LoopFactor("nowhere", 0),)),)
    with pytest.raises(MismatchError) as error:
        resolve(tuple(names), function, axes)
    said = str(error.value)
    assert all(text in said for text in (function.name, function.ops[1].target, "'split nowhere'"))
    assert all(str(name) in said for name in axes.ops[1].by_name)
    with pytest.raises(MismatchError, match="operators"):
        resolve(tuple(names[1:]), function, axes)


def test_a_boundary_maps_joins_and_stacks(traced):
    function = next(f for f in traced("gpt2").functions if f.differentiable)
    values = boundary_values(function)
    assert values.map(str).map(int) == values
    doubled = values.join(values, lambda x, y: x + y)
    assert doubled == values.map(lambda x: 2 * x)
    assert doubled.tangents == tuple(None if t is None else 2 * t for t in values.tangents)
    axes = [AxisSharding((), Boundary((s,), (None,), (s,), (s,))) for s in ("R", (0, 1), "P")]
    layout = ("R", (0, 1), "P")
    assert stack_boundary(axes) == Boundary((layout,), (None,), (layout,), (layout,))
