"""Pooling, resampling, padding and windows: space is whole, what stands before it is independent."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import DimNames, dim_names, dims, pattern

# target -> number of dims of space, the last ones of the operand
FORWARD: dict[str, int] = {
    "aten.max_pool2d_with_indices.default": 2,
    "aten.max_pool3d_with_indices.default": 3,
    "aten.max_pool2d.default": 2,
    "aten.avg_pool1d.default": 1,
    "aten.avg_pool2d.default": 2,
    "aten.avg_pool3d.default": 3,
    "aten._adaptive_avg_pool2d.default": 2,
    "aten._adaptive_avg_pool3d.default": 3,
    "aten.adaptive_avg_pool1d.default": 1,
    "aten.adaptive_avg_pool2d.default": 2,
    "aten.adaptive_max_pool2d.default": 2,
    "aten.adaptive_max_pool3d.default": 3,
    "aten.upsample_nearest1d.default": 1,
    "aten.upsample_nearest2d.default": 2,
    "aten.upsample_nearest3d.default": 3,
    "aten._upsample_nearest_exact1d.default": 1,
    "aten._upsample_nearest_exact2d.default": 2,
    "aten._upsample_nearest_exact3d.default": 3,
    "aten.upsample_linear1d.default": 1,
    "aten.upsample_bilinear2d.default": 2,
    "aten.upsample_bicubic2d.default": 2,
    "aten.upsample_trilinear3d.default": 3,
    "aten._upsample_bilinear2d_aa.default": 2,
    "aten._upsample_bicubic2d_aa.default": 2,
    "aten.reflection_pad1d.default": 1,
    "aten.reflection_pad2d.default": 2,
    "aten.reflection_pad3d.default": 3,
    "aten.replication_pad1d.default": 1,
    "aten.replication_pad2d.default": 2,
    "aten.replication_pad3d.default": 3,
    "aten.pixel_shuffle.default": 3,
    "aten.pixel_unshuffle.default": 3,
    "aten.channel_shuffle.default": 3,
}
# [n c space] <-> [n windows places]: samples alone are independent
WINDOWS: dict[str, int] = {"aten.im2col.default": 3, "aten.col2im.default": 2}
BACKWARD: dict[str, int] = {
    "aten.max_pool2d_with_indices_backward.default": 2,
    "aten.max_pool3d_with_indices_backward.default": 3,
    "aten.avg_pool2d_backward.default": 2,
    "aten.avg_pool3d_backward.default": 3,
    "aten._adaptive_avg_pool2d_backward.default": 2,
    "aten._adaptive_avg_pool3d_backward.default": 3,
    "aten.adaptive_max_pool2d_backward.default": 2,
    "aten.adaptive_max_pool3d_backward.default": 3,
    "aten.reflection_pad1d_backward.default": 1,
    "aten.reflection_pad2d_backward.default": 2,
    "aten.reflection_pad3d_backward.default": 3,
    "aten.replication_pad1d_backward.default": 1,
    "aten.replication_pad2d_backward.default": 2,
    "aten.replication_pad3d_backward.default": 3,
}
# target -> number of dims of space; the size of the input is argument 2
RESAMPLED: dict[str, int] = {
    target.replace(".default", "_backward.default"): space
    for target, space in FORWARD.items()
    if "upsample" in target
}
SELECTS = "max_pool"


def _named(given: tuple[int, ...], made: tuple[int, ...], space: int) -> tuple[DimNames, DimNames]:
    """Words of the large and of the small tensor, which agree in all dims but those of space."""
    count = len(given) - space
    batch = dim_names(given[:count])
    inside = dim_names(given[count:], "s", whole=range(9))
    outside = dim_names(made[count:], "o", whole=range(9))
    return [*batch, *inside], [*batch, *outside]


@declare(*FORWARD, *WINDOWS)
def pool(site: Site) -> Loops | None:
    result = next((r for r in site.results if r is not None), None)
    if result is None:
        return None
    space = {**FORWARD, **WINDOWS}[site.op.target]
    given, made = _named(site.operands[0].shape, result.shape, space)
    linear = ((0,),) if SELECTS not in site.op.target else ()
    text = pattern([given], [made] * len(site.results))
    return loops(text, site, linear=linear, work="reduce", flops=_one_per_input(made, site))


@declare(*BACKWARD)
def pool_backward(site: Site) -> Loops | None:
    """gradient, x (, indices) -> of x"""
    upper, x = site.operands[0].shape, site.operands[1].shape
    given, made = _named(x, upper, BACKWARD[site.op.target])
    inputs = [made, given, *[made] * (len(site.operands) - 2)]
    text = pattern(inputs, [given])
    return loops(text, site, linear=((0,),), work="reduce", flops=_one_per_input(made, site))


@declare(*RESAMPLED)
def resample_backward(site: Site) -> Loops | None:
    """gradient, output size, input size -> of x"""
    (result,) = site.results
    if result is None:
        return None
    given, made = _named(result.shape, site.operands[0].shape, RESAMPLED[site.op.target])
    shapes = ((2, dims(given)),)
    flops = _one_per_input(made, site)
    text = pattern([made], [given])
    return loops(text, site, linear=((0,),), shapes=shapes, work="reduce", flops=flops)


def _one_per_input(made: DimNames, site: Site) -> float:
    """The nest walks both spaces; one operation per point of the large one is meant."""
    small = min((site.operands[0], *[r for r in site.results if r]), key=lambda t: t.elements)
    points = 1
    for dim_name, size in zip(made, small.shape, strict=False):
        points *= size if dim_name.startswith("o") else 1
    return 1.0 / points


@declare("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(site: Site) -> Loops:
    """x, grid of places -> values there: places are independent"""
    x, grid, made = _sampled(site)
    return loops(pattern([x, grid], [made]), site, linear=((0,),), work="move", flops=0)


@declare("aten.grid_sampler_2d_backward.default", "aten.grid_sampler_3d_backward.default")
def grid_sampler_backward(site: Site) -> Loops:
    """gradient, x, grid -> of x, of the grid"""
    x, grid, made = _sampled(site, first=1)
    text = pattern([made, x, grid], [x, grid])
    return loops(text, site, linear=((0,),), work="move", flops=0)


def _sampled(site: Site, first: int = 0) -> tuple[DimNames, DimNames, DimNames]:
    """Dim names of x, of the grid and of the result."""
    x, grid = site.operands[first].shape, site.operands[first + 1].shape
    space = dim_names(x[2:], "s", whole=range(9))
    places = dim_names(grid[1:-1], "o")
    return ["b", "c", *space], ["b", *places, "axis!"], ["b", "c", *places]
