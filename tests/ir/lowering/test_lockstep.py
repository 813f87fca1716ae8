"""A random strategy for every operator of every function: all ranks together equal the whole."""

import random

import pytest
import torch

from plait.ir.analysis.axes import analyse
from plait.ir.analysis.bound_sharding import BoundSharding
from plait.ir.capture.execute import run_ops
from plait.ir.lowering.cast import cast_model
from plait.ir.lowering.localize import localize
from plait.ir.lowering.products import slices
from plait.ir.model.loops import OPERATORS, loops
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.plan.sharding import boundary_values
from plait.tests.ir.lowering import lockstep
from plait.tests.sampling import some
from plait.tests.zoo import ZOO

MESHES = (Mesh((Axis("a", 2),)), Mesh((Axis("slice", 4),)), Mesh((Axis("a", 2), Axis("b", 2))))
TRIALS, MANY = 3, 200
TOLERANCE = 1e-12


def draw(type_, generator):
    if type_.dtype == "bool":
        return torch.rand(type_.shape, generator=generator) > 0.3
    if type_.dtype == "int64":
        drawn = torch.randint(0, 2, type_.shape, generator=generator)
        return drawn if type_.shape else torch.tensor(7)
    return torch.randn(type_.shape, dtype=torch.float64, generator=generator)


class Whole:
    """A function with random inputs, and what it computes on one device."""

    def __init__(self, function, generator):
        self.function, self.axes = function, analyse(function)
        given = [i.value for i in function.inputs]
        given += [o.tangent for o in function.outputs if o.tangent is not None]
        self.source = {value: draw(function.types[value], generator) for value in given}
        for item in function.inputs:
            if item.kind == "parameter":  # small, as at initialisation, lest rounding grows
                self.source[item.value] = self.source[item.value] * 0.2
        ends = [o.value for o in function.outputs]
        ends += [i.gradient for i in function.inputs if i.gradient is not None]
        self.made = run_ops(function.ops, self.source, ends)
        # Some gradients are exactly zero but for rounding: errors count against the largest of all.
        self.scale = max((x.double().abs().max().item() for x in self.made.values()), default=1.0)

    def random_boundary(self, mesh, rng):
        function = self.function

        def layout(value):
            return lockstep.random_layout(
                self.axes, value, function.types[value].is_float, mesh, rng
            )

        return boundary_values(function).map(layout)

    def check(self, mesh, rng):
        """One random assignment of options, in random layouts."""
        function, boundary = self.function, self.random_boundary(mesh, rng)
        choices = lockstep.random_choices(self.axes, mesh, rng)
        local = localize(BoundSharding(function, self.axes, mesh, choices, boundary))
        pairs = [(m.value, i.value) for m, i in zip(local.inputs, function.inputs, strict=True)]
        pairs += [
            (m.tangent, o.tangent) for m, o in zip(local.outputs, function.outputs, strict=True)
        ]
        layouts = (*boundary.inputs, *boundary.tangents)
        inputs = {
            mine: lockstep.shard(self.source[value], self.axes.factors[value], layout, mesh)
            for (mine, value), layout in zip(pairs, layouts, strict=True)
            if value is not None
        }
        values = lockstep.run(local, inputs, mesh)
        ends = [(m.value, o.value) for m, o in zip(local.outputs, function.outputs, strict=True)]
        ends += [
            (m.gradient, i.gradient) for m, i in zip(local.inputs, function.inputs, strict=True)
        ]
        layouts = (*boundary.outputs, *boundary.gradients)
        for (mine, value), layout in zip(ends, layouts, strict=True):
            if value is not None:
                self.compare(
                    lockstep.unshard(values[mine], self.axes.factors[value], layout, mesh), value
                )

    def compare(self, joined, value):
        error = (joined.double() - self.made[value].double()).abs().max().item()
        assert error <= TOLERANCE * self.scale, f"value {value} is off by {error / self.scale:.1e}"


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """Gathers of the axis `slice` come in as many slices as they can."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


def prove(model, trials):
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    for function in cast_model(model, "float64").functions:
        whole = Whole(function, generator)
        for trial in range(trials):
            whole.check(MESHES[trial % len(MESHES)], rng)


@pytest.mark.parametrize("name", some(ZOO, 8))
def test_random_strategies_equal_the_whole(name, traced):
    prove(traced(name), TRIALS)


@pytest.mark.long
@pytest.mark.parametrize("name", ZOO)
def test_many_random_strategies_equal_the_whole(name, traced):
    prove(traced(name), MANY)


def test_a_false_declaration_is_found(traced, monkeypatch):
    """Softmax cut along the dimension that it normalises."""

    def false(site):
        return loops("[b h s t] -> [b h s t]", site)

    monkeypatch.setitem(OPERATORS, "aten._softmax.default", false)
    with pytest.raises(AssertionError, match="off by"):
        prove(traced("bloom"), 20)
