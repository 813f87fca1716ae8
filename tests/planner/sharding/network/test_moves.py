"""Shared tables of transitions say what walking every transition says."""

from itertools import product

import numpy as np

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.axes import Axes
from plait.ir.model.layout import divides_evenly, reshard_steps
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import Function, Input
from plait.ir.model.tensor import TensorType
from plait.planner.sharding.costs import RooflineCosts
from plait.planner.sharding.network.moves import ReshardTables

STATES = ("R", "P", (0, 0), (0, 1), (1, 0))
FACTORS = ((8, 64), (8,))
MESH = Mesh((Axis("a", 2), Axis("b", 4), Axis("c", 2)))


def costs() -> RooflineCosts:
    type_ = TensorType((512, 8), "float32")
    function = Function("f", (type_,), (Input(0, "activation", "x"),), (), (), 0)
    axes = Axes((FACTORS,), (((0, 1), (2,)),), (), {0: 8, 1: 64, 2: 8})
    return RooflineCosts(function, axes, MESH, load_cluster("2x4x2xh100"), (8, 2, 1))


def test_tables_agree_with_transitions():
    prices = costs()
    numbers = np.arange(0, len(STATES) ** 3, 3)
    layouts = list(product(STATES, repeat=3))
    table = ReshardTables(prices, 3).table(0, numbers, numbers, STATES)
    for i, j in product(range(len(numbers)), repeat=2):
        steps = reshard_steps(layouts[numbers[i]], layouts[numbers[j]])
        assert np.isclose(table[i, j], sum(prices.step(0, step) for step in steps), rtol=1e-12)


def test_every_transition_ends_and_its_steps_divide():
    for source, target in product(product(STATES, repeat=3), repeat=2):
        steps = reshard_steps(source, target)
        assert (steps[-1].after if steps else source) == target
        if divides_evenly(FACTORS, source, MESH) and divides_evenly(FACTORS, target, MESH):
            assert all(divides_evenly(FACTORS, step.after, MESH) for step in steps)
