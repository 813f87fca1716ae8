"""Tensor factories: every rank creates its own shard."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import DimNames, dim_names, dims, pattern


@declare("aten.full.default", "aten.zeros.default", "aten.ones.default", "aten.empty.memory_format")
def filled(site: Site) -> Loops | None:
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(result.shape)
    return _made(site, [], full, 0)


@declare(
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
    "aten.new_empty.default",
)
def new(site: Site) -> Loops | None:
    """The operand lends its element type; of another shape it is whole, lest results add up."""
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(result.shape)
    shape = site.operands[0].shape
    given = full if shape == result.shape else dim_names(shape, "o", whole=range(len(shape)))
    return _made(site, [given], full, 1)


def _made(site: Site, inputs: list[DimNames], full: DimNames, position: int) -> Loops:
    shapes = ((position, dims(full)),)
    return loops(pattern(inputs, [full]), site, shapes=shapes, work="move", flops=0)


@declare(
    "aten.arange.default",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.linspace.default",
    "aten.eye.default",
    "aten.eye.m",
    "aten.scalar_tensor.default",
    "aten.tril_indices.default",
    "aten.triu_indices.default",
)
def counted(site: Site) -> Loops | None:
    """Values depend on the position in the global tensor."""
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(result.shape, whole=range(len(result.shape)))
    return loops(pattern([], [full]), site, work="move", flops=0)
