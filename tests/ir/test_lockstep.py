"""A random strategy for every operator of every function: all ranks together equal the whole."""

import random
import sys
from pathlib import Path

import pytest
import torch

from plait.ir.axes import analyse
from plait.ir.capture import trace
from plait.ir.capture.execute import run_ops
from plait.ir.local import Boundary, localize
from plait.ir.mesh import Axis, Mesh
from plait.ir.precision import lift_dtypes

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import lockstep  # noqa: E402
from zoo import ZOO  # noqa: E402

MESHES = (Mesh((Axis("a", 2),)), Mesh((Axis("a", 2), Axis("b", 2))))
TRIALS = 6


def draw(type_, generator):
    if type_.dtype == "bool":
        return torch.rand(type_.shape, generator=generator) > 0.3
    if type_.dtype == "int64":
        drawn = torch.randint(0, 2, type_.shape, generator=generator)
        return drawn if type_.shape else torch.tensor(7)
    return torch.randn(type_.shape, dtype=torch.float64, generator=generator)


def random_boundary(function, axes, mesh, rng):
    def layout(value):
        return lockstep.random_layout(axes, value, function.types[value].is_float, mesh, rng)

    return Boundary(
        tuple(layout(i.value) for i in function.inputs),
        tuple(None if i.gradient is None else layout(i.gradient) for i in function.inputs),
        tuple(layout(o.value) for o in function.outputs),
        tuple(None if o.tangent is None else layout(o.tangent) for o in function.outputs),
    )


def check(function, axes, mesh, rng, source, whole):
    boundary = random_boundary(function, axes, mesh, rng)
    choices = lockstep.random_choices(axes, mesh, rng)
    local = localize(function, axes, mesh, choices, boundary)
    inputs = {}
    for mine, item, layout in zip(local.inputs, function.inputs, boundary.inputs, strict=True):
        inputs[mine.value] = lockstep.shard(
            source[item.value], axes.factors[item.value], layout, mesh
        )
    pairs = zip(local.outputs, function.outputs, boundary.tangents, strict=True)
    for mine, item, layout in pairs:
        if item.tangent is not None:
            inputs[mine.tangent] = lockstep.shard(
                source[item.tangent], axes.factors[item.tangent], layout, mesh
            )
    values = lockstep.run(local, inputs, mesh)
    ends = [
        (mine.value, item.value, layout)
        for mine, item, layout in zip(
            local.outputs, function.outputs, boundary.outputs, strict=True
        )
    ] + [
        (mine.gradient, item.gradient, layout)
        for mine, item, layout in zip(
            local.inputs, function.inputs, boundary.gradients, strict=True
        )
        if item.gradient is not None
    ]
    # Some gradients are exactly zero but for rounding: errors count against the largest of all.
    scale = max(whole[value].double().abs().max().item() for _, value, _ in ends) or 1.0
    for mine, value, layout in ends:
        joined = lockstep.unshard(values[mine], axes.factors[value], layout, mesh)
        torch.testing.assert_close(
            joined.double(), whole[value].double(), rtol=0, atol=1e-10 * scale
        )


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "t5", "mixtral"])
def test_random_strategies_equal_the_whole(name):
    torch.manual_seed(0)
    module, batch = ZOO[name]()
    model = lift_dtypes(trace(module.train(), batch), "float64")
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    for function in model.functions:
        axes = analyse(function)
        source = {i.value: draw(function.types[i.value], generator) for i in function.inputs}
        for output in function.outputs:
            if output.tangent is not None:
                source[output.tangent] = draw(function.types[output.tangent], generator)
        ends = [o.value for o in function.outputs]
        ends += [i.gradient for i in function.inputs if i.gradient is not None]
        whole = run_ops(function.ops, source, ends)
        for _ in range(TRIALS):
            check(function, axes, rng.choice(MESHES), rng, source, whole)
