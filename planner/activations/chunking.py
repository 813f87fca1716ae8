"""Chunked execution: a function runs in chunks, one after the other, to shrink its temporaries.

A chunk has a slice of the tokens, or of the samples where tokens interact, and all weights; partial
sums are accumulated. It is a split in time without collectives, so a function can be chunked only
where no operator needs the tokens or samples of another chunk (TSPLIT, Nie et al. 2022, along loops
that the operators declare).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...ir.analysis.axes import Axes
from ...ir.analysis.dataflow import Dataflow
from ...ir.layout import UnreachableLayout, divides_evenly
from ...ir.lowering.chunk import BoundSharding, Chunking, ValueShards, chunk_sharding, refine_axes
from ...ir.lowering.localize import MICRO, Boundary
from ...ir.mesh import Mesh
from ...ir.model import Function
from ..sharding.data_parallel import follow

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
                sharding = _one_device(function, self.flow.axes[name])
                slicings = (
                    tokens
                    for tokens in (True, False)
                    if self.chunks_along(function, sharding, FEWEST_CHUNKS, tokens)
                )
                self.loops[name] = next(slicings, None)
        return self.loops[name]

    def samples_multiple(self, function: Function, chunk: int) -> int:
        """Number that must divide the samples of a micro-batch."""
        return 1 if chunk == 1 or self.by_tokens(function) else chunk

    def chunk(
        self, function: Function, sharding: BoundSharding, degree: int
    ) -> ChunkedFunction | None:
        """The sharded function in `degree` equal chunks, or None where that is impossible."""
        tokens = self.by_tokens(function)
        return None if tokens is None else self.chunks_along(function, sharding, degree, tokens)

    def chunks_along(
        self, function: Function, sharding: BoundSharding, degree: int, tokens: bool
    ) -> ChunkedFunction | None:
        """Chunks along tokens or samples; None unless they are equal and independent."""
        where = self.flow.token_shard if tokens else self.flow.batch_shard
        values = (
            *(i.value for i in function.inputs if i.kind == "activation"),
            *(o.value for o in function.outputs),
        )
        shards_at = {v: shard for v in values if (shard := where(function, v)) is not None}
        if not any(i.value in shards_at for i in function.inputs):
            return None
        axes = self.flow.axes[function.name]
        outer_degree = self.degree(function, sharding) if tokens else 1
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
        chunk_sharding_ = chunk_sharding(function, axes, refined, sharding, chunking)
        local = local_function(function, chunk_sharding_)
        return None if local is None else ChunkedFunction(chunking, local)

    def chunking(
        self, function: Function, axes: Axes, shards_at: ValueShards, outer_degree: int, degree: int
    ) -> Chunking:
        """Chunking of the loop at `shards_at` inside its `outer_degree` shards, which `axes` has as
        a factor.
        """
        inner = {v: (dim, part + (outer_degree > 1)) for v, (dim, part) in shards_at.items()}
        loops = frozenset(axes.factor_ids[v][dim][part] for v, (dim, part) in inner.items())
        split = follow(function, axes, inner, loops, self.summed[function.name])
        return Chunking(function.name, degree, outer_degree, tuple(shards_at.items()), split)

    def degree(self, function: Function, sharding: BoundSharding) -> int:
        """Product of the mesh axes that shard tokens somewhere in a function."""
        tokens, axes = self.flow.token_factors[function.name], self.flow.axes[function.name]
        return prod(
            axis.size
            for i, axis in enumerate(sharding.mesh.axes)
            if axis.name != MICRO
            and any(
                op_axes.options[chosen[i]].factor_id in tokens
                for op_axes, chosen in zip(axes.ops, sharding.choices, strict=True)
            )
        )


def local_function(function: Function, sharding: BoundSharding) -> Function | None:
    """Per-device function of a chunk; None where chunks are uneven or depend on one another."""
    values = [*(i.value for i in function.inputs), *(o.value for o in function.outputs)]
    layouts = (*sharding.boundary.inputs, *sharding.boundary.outputs)
    if not all(
        divides_evenly(sharding.axes.factors[v], at, sharding.mesh)
        for v, at in zip(values, layouts, strict=True)
    ):
        return None
    try:
        return sharding.localize(function)
    except UnreachableLayout:
        return None


def _one_device(function: Function, axes: Axes) -> BoundSharding:
    """The function on one device, one micro-batch."""
    boundary = Boundary(
        tuple(() for _ in function.inputs),
        tuple(None if i.gradient is None else () for i in function.inputs),
        tuple(() for _ in function.outputs),
        tuple(None if o.tangent is None else () for o in function.outputs),
    )
    return BoundSharding(axes, Mesh(()), tuple(() for _ in function.ops), boundary)
