"""CPU seconds of the sharding search: `python benchmarks/sharding_time.py CONFIG.json …`.

Each argument is a transformers config file. Every function that trains is split over one axis of 8
and over three axes, along any loop but the batch, with its boundary whole and cut along the
sequence; weights may lie in any way.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.data_parallel import split_batch, split_values
from plait.ir.analysis.dataflow import Dataflow, analyse_dataflow
from plait.ir.capture import load_source, trace
from plait.ir.model.layout import REPLICATE, AxisPlacement, Shard
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import Function, Model
from plait.planner.sharding import AxisRule, SearchOptions, ShardingProblem, price, solve
from plait.planner.sharding.costs import BatchSplit, RooflineCosts
from plait.planner.sharding.network.build import build
from plait.planner.sharding.network.search import reduce

BATCH, SEQUENCE = 4, 8192
MESHES = (
    ((8,), "8xh100"),
    ((2, 2, 2), "8xh100"),
    ((2, 2, 2), "2x2x2xh100"),
    ((4, 4, 4), "4x4x4xh100"),
)
NAMES = ("operators", "labels", "left", "build s", "reduce s", "all s", "objective", "bound", "gap")
HEAD = f"{'function':<24}{'mesh':>7} {'cluster':<12}{'boundary':<10}" + "".join(
    f"{name:>11}" for name in NAMES
)


def rule(function: Function, known: Dataflow, size: int, split: bool) -> AxisRule:
    """Any loop but the batch; activations whole, or cut along their second dim where that divides."""
    axes, batch = known.axes[function.name], known.batch_factors[function.name]

    def splits(value: int) -> list[Shard]:
        return [
            (dim, part)
            for dim, parts in enumerate(axes.factors[value])
            for part, extent in enumerate(parts)
            if extent % size == 0 and axes.factor_ids[value][dim][part] not in batch
        ]

    ends = [i.value for i in function.activations()]
    ends += [i.gradient for i in function.activations() if i.gradient is not None]
    ends += [o.value for o in function.outputs]
    ends += [o.tangent for o in function.outputs if o.tangent is not None]
    states: dict[int, tuple[AxisPlacement, ...]] = {}
    whole: tuple[AxisPlacement, ...] = (REPLICATE,)
    for value in ends:
        along = [shard for shard in splits(value) if shard[0] == 1] if split else []
        states[value] = (along[0],) if along else whole
    for item in function.state_inputs():
        states[item.value] = (REPLICATE, *splits(item.value))
    return AxisRule(frozenset(axes.sizes) - batch, states, {"R": "P"} if split else {})


def problem(
    model: Model, known: Dataflow, name: str, sizes: tuple[int, ...], cluster: str, split: bool
) -> ShardingProblem:
    function, axes = model.function(name), known.axes[name]
    mesh = Mesh(tuple(Axis(f"a{i}", size) for i, size in enumerate(sizes)))
    values = split_values(function, axes, split_batch(function, known, frozenset()))
    strides = tuple(mesh.stride(i) for i in range(len(sizes)))
    batch = BatchSplit(values, model.batch)
    costs = RooflineCosts(function, axes, mesh, load_cluster(cluster), strides, batch)
    rules = tuple(rule(function, known, size, split) for size in sizes)
    return ShardingProblem(function, axes, mesh, rules, costs)


def row(question: ShardingProblem, label: str) -> str:
    """One line of the table: `left` labels after reduction; the judge checks the price."""
    start = time.process_time()
    solution = solve(question)
    solved = time.process_time() - start
    network = build(question).network
    built = time.process_time() - start - solved
    rest = reduce(network, SearchOptions()).network
    reduced = time.process_time() - start - solved - built
    assert abs(price(question, solution.axes) - solution.objective) <= 1e-9 * solution.objective
    counts = (len(question.function.ops), *(sum(map(len, n.seconds)) for n in (network, rest)))
    return label + "".join(
        [f"{n:>11}" for n in counts]
        + [f"{t:>11.3f}" for t in (built, reduced, solved)]
        + [f"{solution.objective:>11.4e}{solution.bound:>11.4e}{solution.gap:>11.4f}"]
    )


def main(configs: list[str]) -> None:
    for config in configs:
        source = load_source(f"hf:{config}", batch=BATCH, seq=SEQUENCE)
        model = trace(source.model, source.batch, batch_size=BATCH)
        known = analyse_dataflow(model)
        print(f"{model.name} from {Path(config).name}, batch {BATCH}, sequence {SEQUENCE}\n{HEAD}")
        for function in model.functions:
            for sizes, cluster in MESHES if function.differentiable else ():
                for split in (False, True):
                    mesh, ends = "x".join(map(str, sizes)), "sequence" if split else "whole"
                    label = f"{function.name:<24}{mesh:>7} {cluster:<12}{ends:<10}"
                    print(row(problem(model, known, function.name, sizes, cluster, split), label))
    print(f"resident at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
