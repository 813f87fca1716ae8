"""Chunked execution of a call: a split in time, inside all splits over devices.

Where devices shard tokens and gather them inside a function, a chunk must be a part of every device's
tokens. So the loop is factored into the devices' shards and the rest, and chunks split the rest:

    8192 tokens = 8 devices x (16 chunks x 64)      a chunk gathered: 8 x 64 tokens, 64 of each device
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from ..analysis.axes import Axes, OpAxes, OpStrategy, analyse
from ..layout import AxisPlacement, Factors, Layout, Shard
from ..mesh import Axis, Mesh
from ..model import Function
from .localize import CHUNK, AtOnce, AxisSharding, Boundary, Choices, add_inner_axis, localize

ValueShards = dict[int, Shard]  # by value: its dim and factor that chunks split


class Chunking(msgspec.Struct, frozen=True):
    """How a function runs in `chunks`. `value_shards` says which dim and factor of its values is the
    chunked loop, which devices shard by `outer`; `sharding` is the split of the rest by chunks."""

    function: str
    chunks: int
    outer: int
    value_shards: tuple[tuple[int, Shard], ...]
    sharding: AxisSharding


class BoundSharding(msgspec.Struct, frozen=True):
    """A sharding together with the axes of its function: all that `localize` needs. `at_once`: for a
    function that takes all micro-batches together."""

    axes: Axes
    mesh: Mesh
    choices: Choices
    boundary: Boundary
    at_once: AtOnce | None = None

    def localize(self, function: Function) -> Function:
        """The per-device function; raises UnreachableLayout where chunks would need each other."""
        return localize(function, self.axes, self.mesh, self.choices, self.boundary, self.at_once)


def chunk_sharding(
    function: Function, axes: Axes, refined: Axes, bound: BoundSharding, chunking: Chunking
) -> BoundSharding:
    """The sharding of one chunk of a function that is sharded as `bound`; `refined` axes have the
    chunked loop as a factor of its own."""
    choices, boundary = bound.choices, bound.boundary
    if chunking.outer > 1:
        choices = tuple(
            tuple(_same(old, new, old.options[c]) for c in chosen)
            for old, new, chosen in zip(axes.ops, refined.ops, choices, strict=True)
        )
        boundary = _refined_boundary(function, boundary, axes, refined)
    mesh = Mesh((*bound.mesh.axes, Axis(CHUNK, chunking.chunks)))
    return BoundSharding(refined, mesh, *add_inner_axis(choices, boundary, chunking.sharding))


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


def _same(old: OpAxes, new: OpAxes, option: OpStrategy) -> int:
    """Index of the option that does in refined axes what `option` does."""

    def moved(loop: str, index: int) -> tuple[str, int]:
        return loop, (
            _first(old.loop_factors[loop], new.loop_factors[loop], index) if loop else index
        )

    partner = None if option.partner is None else moved(*option.partner)
    wanted = (*moved(option.loop, option.factor_index), partner)
    return next(
        number
        for number, candidate in enumerate(new.options)
        if (candidate.loop, candidate.factor_index, candidate.partner) == wanted
        and (candidate.loop or candidate.inputs == option.inputs)
    )


def _first(old: tuple[int, ...], new: tuple[int, ...], index: int) -> int:
    """Index of the first refined factor that belongs to factor `index`."""
    before, at, product = 1, 0, 1
    for size in old[:index]:
        before *= size
    while product < before:
        product *= new[at]
        at += 1
    return at


def _refined_boundary(function: Function, boundary: Boundary, old: Axes, new: Axes) -> Boundary:
    def moved(value: int) -> Callable[[AxisPlacement], AxisPlacement]:
        def state(have: AxisPlacement) -> AxisPlacement:
            if not isinstance(have, tuple):
                return have
            dim, index = have
            return dim, _first(old.factors[value][dim], new.factors[value][dim], index)

        return state

    def layouts(values: list[int | None], given: tuple[Layout | None, ...]) -> tuple:  # type: ignore[type-arg]
        return tuple(
            None if layout is None or value is None else tuple(map(moved(value), layout))
            for value, layout in zip(values, given, strict=True)
        )

    inputs, outputs = function.inputs, function.outputs
    return replace(
        boundary,
        inputs=layouts([i.value for i in inputs], boundary.inputs),
        gradients=layouts([i.gradient for i in inputs], boundary.gradients),
        outputs=layouts([o.value for o in outputs], boundary.outputs),
        tangents=layouts([o.tangent for o in outputs], boundary.tangents),
    )
