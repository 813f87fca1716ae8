"""Chunked execution: a function runs in chunks, one after the other, to shrink its temporaries.

A chunk has a slice of the tokens, or of the samples where tokens interact, and all weights; partial
sums are accumulated. It is a split in time without collectives, so a function can be chunked only
where no operator needs the tokens or samples of another chunk (TSPLIT, Nie et al. 2022, along loops
that the operators declare).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.analysis.axes import Axes
from ...ir.analysis.bound_sharding import BoundSharding
from ...ir.analysis.data_parallel import follow
from ...ir.analysis.dataflow import Dataflow
from ...ir.lowering.chunk import ValueShards, chunk_sharding, refine_axes
from ...ir.lowering.localize import localize
from ...ir.model.layout import PARTIAL, REPLICATE, AxisPlacement, UnreachableLayout, divides_evenly
from ...ir.model.mesh import MICRO, Mesh
from ...ir.model.model import Function
from ...ir.plan.sharding import AxisSharding, Chunking, boundary_values

FEWEST_CHUNKS = 2


class ChunkedFunction(NamedTuple):
    """A function in equal chunks, and the per-device function of one chunk."""

    chunking: Chunking
    local: Function


class Chunker:
    """Chunks the functions of one model; `summed`: partial sums among each function's values."""

    def __init__(self, flow: Dataflow, summed: dict[str, frozenset[int]]) -> None:
        self.flow, self.summed = flow, summed
        self.loops: dict[str, bool | None] = {}
        self.refined: dict[tuple[str, bool, int], Axes] = {}

    def by_tokens(self, function: Function) -> bool | None:
        """Whether chunks slice tokens (True) or samples (False); None where neither is possible."""
        name = function.name
        if name not in self.loops:
            self.loops[name] = None
            if function.differentiable:
                bound = _one_device(function, self.flow.axes[name])
                slicings = (
                    tokens
                    for tokens in (True, False)
                    if self.chunks_along(bound, FEWEST_CHUNKS, tokens)
                )
                self.loops[name] = next(slicings, None)
        return self.loops[name]

    def samples_multiple(self, function: Function, chunk: int) -> int:
        """Number that must divide the samples of a micro-batch."""
        return 1 if chunk == 1 or self.by_tokens(function) else chunk

    def chunk(self, bound: BoundSharding, degree: int) -> ChunkedFunction | None:
        """The sharded function in `degree` equal chunks, or None where that is impossible."""
        tokens = self.by_tokens(bound.function)
        return None if tokens is None else self.chunks_along(bound, degree, tokens)

    def chunks_along(
        self, bound: BoundSharding, degree: int, tokens: bool
    ) -> ChunkedFunction | None:
        """Chunks along tokens or samples; None unless they are equal and independent."""
        function = bound.function
        where = self.flow.token_shard if tokens else self.flow.batch_shard
        values = (
            *(i.value for i in function.inputs if i.kind == "activation"),
            *(o.value for o in function.outputs),
        )
        shards_at = {v: shard for v in values if (shard := where(function, v)) is not None}
        if not any(i.value in shards_at for i in function.inputs):
            return None
        axes = self.flow.axes[function.name]
        outer_degree = self.token_degree(bound) if tokens else 1
        if any(
            axes.factors[v][dim][part] % (outer_degree * degree)
            for v, (dim, part) in shards_at.items()
        ):
            return None
        key = function.name, tokens, outer_degree
        if key not in self.refined:
            self.refined[key] = refine_axes(function, axes, shards_at, outer_degree)
        refined = self.refined[key]
        chunking = self.chunking(function, refined, shards_at, outer_degree, degree)
        local = local_function(chunk_sharding(bound, refined, chunking))
        return None if local is None else ChunkedFunction(chunking, local)

    def chunking(
        self, function: Function, axes: Axes, shards_at: ValueShards, outer_degree: int, degree: int
    ) -> Chunking:
        """Chunking of the loop at `shards_at` inside its `outer_degree` shards, which `axes` has as
        a factor.
        """
        inner = {v: (dim, part + (outer_degree > 1)) for v, (dim, part) in shards_at.items()}
        loops = frozenset(axes.factor_ids[v][dim][part] for v, (dim, part) in inner.items())
        split = received_whole(follow(function, axes, inner, loops, self.summed[function.name]))
        return Chunking(function.name, degree, outer_degree, tuple(shards_at.items()), split)

    def token_degree(self, bound: BoundSharding) -> int:
        """Product of the mesh axes that shard tokens somewhere in a function."""
        tokens = self.flow.token_factors[bound.function.name]
        return prod(
            axis.size
            for i, axis in enumerate(bound.mesh.axes)
            if axis.name != MICRO
            and any(options[i].factor_id in tokens for options in bound.strategies)
        )


def received_whole(split: AxisSharding) -> AxisSharding:
    """The same with values that come from outside whole where they would be partial sums.

    Ranks and micro-batches have a part each of a sum that passes between functions; the chunks of a
    call all receive the same value, which is to count once.
    """

    def whole(placement: AxisPlacement) -> AxisPlacement:
        return REPLICATE if placement == PARTIAL else placement

    boundary = split.boundary
    inputs, tangents = boundary.map(whole).inputs, boundary.map(whole).tangents
    return replace(split, boundary=replace(boundary, inputs=inputs, tangents=tangents))


def local_function(bound: BoundSharding) -> Function | None:
    """Per-device function of a chunk; None where chunks are uneven or depend on one another."""
    values, boundary = boundary_values(bound.function), bound.boundary
    layouts = zip(
        (*values.inputs, *values.outputs), (*boundary.inputs, *boundary.outputs), strict=True
    )
    if not all(divides_evenly(bound.axes.factors[v], at, bound.mesh) for v, at in layouts):
        return None
    try:
        return localize(bound)
    except UnreachableLayout:
        return None


def _one_device(function: Function, axes: Axes) -> BoundSharding:
    """The function on one device, one micro-batch."""
    boundary = boundary_values(function).map(lambda _: ())
    return BoundSharding(function, axes, Mesh(()), ((),) * len(function.ops), boundary)
