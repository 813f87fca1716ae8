"""Every layout is reachable from every other, and the collectives keep the tensor's value."""

import random

import pytest
import torch

from plait.ir.analysis.axes import Axes
from plait.ir.analysis.bound_sharding import BoundSharding
from plait.ir.lowering.localize import _Localizer
from plait.ir.model.layout import divides_evenly, reshard_steps
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import Function, Input, Op, Output, Ref
from plait.ir.model.tensor import TensorType
from plait.ir.plan.sharding import boundary_values
from plait.tests.ir.lowering import lockstep

MESHES = (
    Mesh((Axis("dp", 2),)),
    Mesh((Axis("dp", 2), Axis("tp", 2))),
    Mesh((Axis("dp", 2), Axis("tp", 3), Axis("sp", 2))),
)
FACTORS = ((12, 6), (4, 12))


def random_layout(rng: random.Random, mesh: Mesh):
    states = ["R", "P", (0, 0), (0, 1), (1, 0), (1, 1)]
    while True:
        layout = tuple(rng.choice(states) for _ in mesh.axes)
        if divides_evenly(FACTORS, layout, mesh):
            return layout


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_transition_keeps_the_value(mesh):
    rng = random.Random(0)
    whole = torch.randn(72, 48, dtype=torch.float64)
    for _ in range(150):
        source, target = random_layout(rng, mesh), random_layout(rng, mesh)
        shards = lockstep.shard(whole, FACTORS, source, mesh)
        moved = move(shards, source, target, mesh)
        back = lockstep.unshard(moved, FACTORS, target, mesh)
        torch.testing.assert_close(back, whole, rtol=1e-12, atol=1e-12)


def move(shards, source, target, mesh):
    """Run the collectives of a transition as the local form writes them."""
    type_ = TensorType((72, 48), "float64")
    function = Function("f", (type_,), (Input(0, "activation", "x"),), (Output(0),), (), 0)
    boundary = boundary_values(function).map(lambda _: source)
    axes = Axes((FACTORS,), (), (), {})
    localizer = _Localizer(BoundSharding(function, axes, mesh, (), boundary))
    local = localizer.add(0, source)
    for step in reshard_steps(source, target):
        local = localizer.collective(local, 0, FACTORS, step)
    values = {0: shards}
    for op in localizer.ops:
        values[op.results[0]] = lockstep.collective(op, values, mesh)[0]
    return values[local]


def test_equal_layouts_need_nothing():
    assert reshard_steps(("R", (0, 1)), ("R", (0, 1))) == ()


def test_direct_steps_are_single_collectives():
    kinds = {
        (("P",), ("R",)): "all_reduce",
        (((0, 0),), ("R",)): "all_gather",
        (("P",), ((0, 0),)): "reduce_scatter",
        (((0, 0),), ((1, 0),)): "all_to_all",
        (("R",), ((0, 0),)): "cut",
        (("R",), ("P",)): "share",
    }
    for (source, target), kind in kinds.items():
        assert [s.kind for s in reshard_steps(source, target)] == [kind]


def test_an_outer_split_moves_the_inner_one_inwards():
    kinds = [s.kind for s in reshard_steps(((0, 0), (0, 0)), ("R", (0, 0)))]
    assert kinds == ["all_gather", "all_gather", "cut"]


def test_op_is_data():
    assert Op("aten.mm.default", (Ref(0),), {}, (1,)) == Op("aten.mm.default", (Ref(0),), {}, (1,))
