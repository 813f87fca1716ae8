"""A common grid under several meshes, and values that pass between their layouts."""

import itertools
import random

import pytest
import torch

from plait.ir.lowering.common_mesh import TensorLayout, lift_layout, resharding
from plait.ir.model.layout import divides_evenly
from plait.ir.model.mesh import Mesh, common_mesh
from plait.ir.model.tensor import TensorType
from plait.ir.plan.strategy import parse_strategy
from plait.runtime.comm.slicing import local_shard


def mesh(strategy: str) -> Mesh:
    return parse_strategy(strategy).mesh


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dp=4"], "dp 4"),
        (["dp=4", "dp=2,tp=2"], "dp 2 × dp_tp 2"),
        (["dp=8", "dp=2,tp=4", "zero3=4,tp=2"], "dp_zero3 2 × dp_tp_zero3 2 × dp_tp 2"),
        (["pp=2,dp=4", "pp=2,tp=4"], "pp 2 × dp_tp 4"),
        (["dp=2,zero3=2,tp=2", "dp=2,tp=4"], "dp 2 × zero3_tp 2 × tp 2"),
        (["tp=4", "tp=4"], "tp 4"),
    ],
)
def test_axes_are_named_by_what_they_are(names, expected):
    assert str(common_mesh([mesh(w) for w in names])) == expected


def test_meshes_without_a_common_grid():
    assert common_mesh([mesh("dp=2,tp=3"), mesh("dp=3,tp=2")]) is None


def test_names_stay_apart():
    made = common_mesh([mesh("dp=8"), mesh("dp=2,tp=4"), mesh("dp=4,tp=2")])
    assert made is not None
    assert len({axis.name for axis in made.axes}) == len(made.axes) == 3


def test_a_shard_over_one_axis_is_a_shard_over_its_parts():
    onto = common_mesh([mesh("dp=4"), mesh("dp=2,tp=2")])
    assert onto is not None
    assert lift_layout(((0, 0),), mesh("dp=4"), onto) == ((0, 0), (0, 0))
    assert lift_layout(((0, 0), "P"), mesh("dp=2,tp=2"), onto) == ((0, 0), "P")


def run(
    source: TensorLayout, target: TensorLayout, onto: Mesh, parts: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The steps of a passage on whole tensors: what every rank holds stands for its piece."""
    steps = resharding(source, target, onto)
    assert steps is not None
    for step in steps.steps:
        total = {}
        for group in onto.groups((step.axis,)):
            for rank in group:
                total[rank] = sum(parts[r] for r in group)
        if step.kind in ("all_reduce", "reduce_scatter"):
            parts = [total[r] for r in range(onto.size)]
        if step.kind == "share":
            parts = [p / onto.axes[step.axis].size for p in parts]
    return parts


def test_random_reshardings_keep_the_value():
    """Sums are followed exactly; the cuts must be those of the wanted layout."""
    random.seed(0)
    onto = common_mesh([mesh("dp=4"), mesh("dp=2,tp=2")])
    assert onto is not None
    states = ["R", "P", (0, 0), (1, 0)]
    kind, factors = TensorType((8, 8), "float64"), ((8,), (8,))
    whole = torch.randn(8, 8, dtype=torch.float64)
    count = 0
    for before, after in itertools.product(itertools.product(states, repeat=2), repeat=2):
        if not (divides_evenly(factors, before, onto) and divides_evenly(factors, after, onto)):
            continue
        source, target = TensorLayout(kind, factors, before), TensorLayout(kind, factors, after)
        steps = resharding(source, target, onto)
        assert steps is not None
        assert steps.steps == () if before == after else steps.steps[-1].after == after
        shares = 1
        for axis, state in zip(onto.axes, before, strict=True):
            shares *= axis.size if state == "P" else 1
        moved = run(source, target, onto, [whole / shares] * onto.size)
        left = 1
        for axis, state in zip(onto.axes, after, strict=True):
            left *= axis.size if state == "P" else 1
        for rank in range(onto.size):
            place = onto.coordinate(rank)
            got = local_shard(moved[rank] * left, factors, after, onto, place)
            assert torch.allclose(got, local_shard(whole, factors, after, onto, place))
        count += 1
    assert count > 200


def test_factors_of_two_functions_meet():
    onto = mesh("dp=2")
    fine = TensorLayout(TensorType((8, 6), "float32"), ((2, 4), (6,)), ((0, 0),))
    coarse = TensorLayout(TensorType((8, 6), "float32"), ((8,), (2, 3)), ((0, 0),))
    steps = resharding(fine, coarse, onto)
    assert steps is not None
    assert (steps.factors, steps.steps) == (((2, 4), (2, 3)), ())
    inner = TensorLayout(TensorType((8, 6), "float32"), ((2, 4), (6,)), ((0, 1),))
    back = resharding(inner, coarse, onto)
    assert back is not None
    assert [s.kind for s in back.steps] == ["all_to_all"]
