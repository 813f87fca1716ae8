"""Chunked execution of a call: a split in time, inside all splits over devices.

Where devices shard tokens and gather them inside a function, a chunk must be a part of every device's
tokens. So the loop is factored into the devices' shards and the rest, and chunks split the rest:

    8192 tokens = 8 devices x (16 chunks x 64)      a chunk gathered: 8 x 64 tokens, 64 of each device
"""

from __future__ import annotations

from ..analysis.axes import Axes, OpAxes, OpStrategy, analyse
from ..analysis.bound_sharding import BoundSharding, bind, resolve
from ..analysis.factors import Factorisation, refined_index
from ..model.layout import Factors, Layout, Shard
from ..model.mesh import CHUNK, Axis, Mesh
from ..model.model import Function
from ..passes import Observer, Pass, run
from ..plan.plan import Layers, Plan
from ..plan.sharding import Boundary, Chunking, LoopFactor, boundary_values, op_split

ValueShards = dict[int, Shard]  # by value: its dim and factor that chunks split


class Chunk(Pass[BoundSharding, BoundSharding], frozen=True):
    """Make the sharding of one chunk of a function that runs in chunks."""

    chunking: Chunking
    name = "chunk"

    def apply(self, value: BoundSharding) -> BoundSharding:
        shards = dict(self.chunking.value_shards)
        refined = refine_axes(value.function, value.axes, shards, self.chunking.outer)
        return chunk_sharding(value, refined, self.chunking)


def bind_layers(
    plan: Plan, layers: Layers, function: Function, axes: Axes, observer: Observer | None = None
) -> BoundSharding:
    """The sharding of a run of layers, or of one of their chunks where they run in chunks."""
    bound = bind(plan.shardings[layers.sharding], function, axes)
    chunking = plan.chunking_of(layers)
    return bound if chunking is None else run(Chunk(chunking), bound, observer)


def chunk_sharding(bound: BoundSharding, refined: Axes, chunking: Chunking) -> BoundSharding:
    """The sharding of one chunk of a function that is sharded as `bound`; `refined` axes have the
    chunked loop as a factor of its own."""
    function, strategies, boundary = bound.function, bound.strategies, bound.boundary
    if chunking.outer > 1:
        strategies = tuple(
            tuple(_same(old, new, option) for option in options)
            for old, new, options in zip(bound.axes.ops, refined.ops, strategies, strict=True)
        )
        boundary = _refined_boundary(bound, refined)
    splits = tuple((split,) for split in chunking.sharding.op_splits)
    inner = resolve(splits, function, refined)
    return BoundSharding(
        function,
        refined,
        Mesh((*bound.mesh.axes, Axis(CHUNK, chunking.chunks))),
        tuple((*outside, *inside) for outside, inside in zip(strategies, inner, strict=True)),
        boundary.join(chunking.sharding.boundary, lambda layout, placement: (*layout, placement)),
    )


def refine_axes(function: Function, axes: Axes, value_shards: ValueShards, outer: int) -> Axes:
    """Analyse the function again with the chunked loop factored into `outer` and the rest."""
    if outer == 1:
        return axes
    known: dict[int, Factors] = {}
    for value in (*(i.value for i in function.inputs), *(o.value for o in function.outputs)):
        factors = axes.factors[value]
        if value in value_shards:
            dim, i = value_shards[value]
            sizes = factors[dim]
            sizes = (*sizes[:i], outer, sizes[i] // outer, *sizes[i + 1 :])
            factors = (*factors[:dim], sizes, *factors[dim + 1 :])
        known[value] = factors
    return analyse(function, known)


def _same(old: OpAxes, new: OpAxes, option: OpStrategy) -> OpStrategy:
    """The option that does in refined axes what `option` does."""
    factors = tuple(
        LoopFactor(loop, _first(old.loop_factors[loop], new.loop_factors[loop], index))
        for loop, index in option.splits
    )
    refined = new.option(op_split(factors, option.name.partial))
    assert refined is not None, f"{option.name} is not among the refined {list(new.by_name)}"
    return refined


def _first(old: Factorisation, new: Factorisation, index: int) -> int:
    """Index of the first refined factor that belongs to factor `index`."""
    place = refined_index(old, new, index)
    assert place is not None, f"{new} does not refine {old}"
    return place


def _refined_boundary(bound: BoundSharding, refined: Axes) -> Boundary[Layout]:
    """The boundary in terms of refined factors."""

    def layout(value: int, layout: Layout) -> Layout:
        old, new = bound.axes.factors[value], refined.factors[value]
        return tuple(
            (x[0], _first(old[x[0]], new[x[0]], x[1])) if isinstance(x, tuple) else x
            for x in layout
        )

    return boundary_values(bound.function).join(bound.boundary, layout)
