"""The sharding search and the evaluation price an operator alike: one rule, on every device."""

from math import isclose, prod
from random import Random

import numpy as np
import pytest

from plait.cost_model.execution_model import GENERATED, ExecutionModel
from plait.cost_model.hardware import load_cluster
from plait.cost_model.operators.operator_cost import Pricer, is_collective
from plait.ir.analysis.axes import analyse
from plait.ir.analysis.bound_sharding import BoundSharding
from plait.ir.devices.cluster import Cluster
from plait.ir.devices.curve import Curve
from plait.ir.lowering.localize import localize
from plait.ir.model.layout import REPLICATE
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.plan.sharding import boundary_values
from plait.planner.sharding.costs import RooflineCosts
from plait.tests.sampling import some

MODELS = ("gpt2", "llama", "mixtral", "bert", "t5", "convnext", "swin", "whisper")
CLUSTER = load_cluster("2x4xh100")
AMOUNTS, SECONDS = (1e3, 1e6, 1e9), (1e-6, 3e-6, 2e-3)
MEASURED = tuple(
    Curve(name, "bytes", AMOUNTS, tuple(i * s for s in SECONDS), source="a test")
    for i, name in enumerate(("mul", "embedding", "pointwise", "move", "div"), 1)
)


def cluster(measured: bool) -> Cluster:
    from msgspec.structs import replace

    device = replace(CLUSTER.device, curves=MEASURED) if measured else CLUSTER.device
    return replace(CLUSTER, device=device)


def random_sharding(function, mesh: Mesh, seed: int) -> BoundSharding:
    """Any strategy of every operator; the boundary is replicated."""
    random, axes = Random(seed), analyse(function)
    strategies = []
    for known in axes.ops:
        chosen, used = [], {}
        for axis in mesh.axes:
            options = [
                o
                for o in known.options
                if (o.loop or o is known.options[0])
                and all(
                    known.loop_factors[loop][i] % (axis.size * used.get((loop, i), 1)) == 0
                    for loop, i in o.splits
                )
            ]
            option = random.choice(options)
            used |= {f: axis.size * used.get(f, 1) for f in option.splits}
            chosen.append(option)
        strategies.append(tuple(chosen))
    replicated = boundary_values(function).map(lambda _: (REPLICATE,) * len(mesh.axes))
    return BoundSharding(function, axes, mesh, tuple(strategies), replicated)


def evaluated(bound: BoundSharding, pricer: Pricer) -> list[float]:
    """Seconds of every operator in the per-device function, without the resharding before it."""
    local, prices = localize(bound), []
    rest = iter(op for op in local.ops if not is_collective(op))
    for op, strategy in zip(bound.function.ops, bound.strategies, strict=True):
        seconds = pricer.op(local, next(rest)).seconds
        means = [a.size for a, o in zip(bound.mesh.axes, strategy, strict=True) if o.mean]
        if prod(means) > 1:
            for _ in (r for r in op.results if r >= 0):
                seconds += pricer.op(local, next(rest)).seconds
        prices.append(seconds)
    return prices


@pytest.mark.parametrize("name", some(MODELS, 2))
@pytest.mark.parametrize(
    ("sizes", "measured", "execution"),
    [
        ((2,), False, GENERATED),
        ((2, 2), False, GENERATED),
        ((2,), True, GENERATED),
        ((2,), False, ExecutionModel(matrix_dtype="bfloat16", fused_attention=False)),
    ],
    ids=["one axis", "two axes", "measured", "other framework"],
)
def test_search_and_evaluation_agree(traced, name, sizes, measured, execution):
    mesh = Mesh(tuple(Axis(f"a{i}", n) for i, n in enumerate(sizes)))
    where = cluster(measured)
    strides = tuple(mesh.stride(i) for i in range(len(sizes)))
    pricer, compared = Pricer(where, mesh, execution=execution), 0
    for function in traced(name).functions:
        bound = random_sharding(function, mesh, len(function.ops))
        costs = RooflineCosts(function, bound.axes, mesh, where, strides, execution=execution)
        for number, seconds in enumerate(evaluated(bound, pricer)):
            searched = costs.operator(number, bound.strategies[number])
            op, strategies = function.ops[number], bound.strategies[number]
            assert isclose(searched, seconds, rel_tol=1e-9), (op.target, strategies)
            compared += seconds > 0
    assert compared > 10


def test_a_look_up_reads_the_rows_it_returns(traced):
    """The table is not streamed: neither the search nor the evaluation counts all of it."""
    model, mesh = traced("gpt2"), Mesh((Axis("tp", 2),))
    for function in model.functions:
        axes = analyse(function)
        costs = RooflineCosts(function, axes, mesh, CLUSTER, (1,))
        for number, op in enumerate(function.ops):
            if op.target == "aten.embedding.default":
                (first, *_), bandwidth = axes.ops[number].options, 3.35e12
                rows = function.types[op.results[0]].bytes
                least = costs.operator(number, (first,)) - CLUSTER.device.launch_overhead_seconds
                assert np.isfinite(least)
                assert least < 10 * (3 * rows) / bandwidth
