"""Pooling and resampling: space is whole, batch and channels are independent."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import DimNames, dim_names, dims, pattern

# target -> number of spatial dims
FORWARD: dict[str, int] = {
    "aten.max_pool2d_with_indices.default": 2,
    "aten.max_pool3d_with_indices.default": 3,
    "aten.max_pool2d.default": 2,
    "aten.avg_pool1d.default": 1,
    "aten.avg_pool2d.default": 2,
    "aten.avg_pool3d.default": 3,
    "aten._adaptive_avg_pool2d.default": 2,
    "aten.adaptive_avg_pool1d.default": 1,
    "aten.adaptive_avg_pool2d.default": 2,
    "aten.upsample_nearest2d.default": 2,
    "aten.upsample_bilinear2d.default": 2,
    "aten.upsample_bicubic2d.default": 2,
}
BACKWARD: dict[str, int] = {
    "aten.max_pool2d_with_indices_backward.default": 2,
    "aten.avg_pool2d_backward.default": 2,
    "aten.avg_pool3d_backward.default": 3,
    "aten._adaptive_avg_pool2d_backward.default": 2,
}
RESAMPLED = (
    "aten.upsample_nearest2d_backward.default",
    "aten.upsample_bilinear2d_backward.default",
    "aten.upsample_bicubic2d_backward.default",
)
SELECTS = "max_pool"


def _named(given: tuple[int, ...], made: tuple[int, ...], space: int) -> tuple[DimNames, DimNames]:
    """Words of the large and of the small tensor."""
    batch = dim_names(given[: len(given) - space])
    inside = dim_names(given[len(given) - space :], "s", whole=range(9))
    outside = dim_names(made[len(made) - space :], "o", whole=range(9))
    return [*batch, *inside], [*batch, *outside]


@declare(*FORWARD)
def pool(site: Site) -> Loops | None:
    result = next((r for r in site.results if r is not None), None)
    if result is None:
        return None
    given, made = _named(site.operands[0].shape, result.shape, FORWARD[site.op.target])
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
    given, made = _named(result.shape, site.operands[0].shape, 2)
    shapes = ((2, dims(given)),)
    flops = _one_per_input(made, site)
    text = pattern([made], [given])
    return loops(text, site, linear=((0,),), shapes=shapes, work="reduce", flops=flops)


def _one_per_input(made: DimNames, site: Site) -> float:
    """The nest walks both spaces; one operation per point of the large one is meant."""
    small = min((site.operands[0], *[r for r in site.results if r]), key=lambda t: t.elements)
    points = 1
    for dim_name, size in zip(made, small.shape, strict=True):
        points *= size if dim_name.startswith("o") else 1
    return 1.0 / points
