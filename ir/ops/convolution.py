"""Convolutions: batch, groups and channels may be split; space where windows do not overlap."""

from __future__ import annotations

from ..model.loops import Dims, LoopKind, Loops, Site, declare, loops
from .pattern import DimNames, dim_names, integers, is_tensor, literal, pattern, present

Shapes = tuple[tuple[int, Dims], ...]


class _Named:
    """Words of input, weight, bias and output; channels are g groups of ci in and co out.

    `first` is the position of the stride; padding, dilation and `transposed` follow it. A dim
    whose windows tile the input is `(o k)`: its windows o are independent.
    """

    def __init__(self, site: Site, shapes: tuple[tuple[int, ...], ...], first: int) -> None:
        x, weight, out = shapes
        transposed = literal(site, first + 3) is True
        options = [_per_dim(site, first + i, len(x) - 2) for i in range(3)]
        kernel = dim_names(weight[2:], "k", whole=range(9))
        inputs: list[str] = []
        outputs: list[str] = []
        self.walked_twice = 1
        for d, (stride, padding, dilation) in enumerate(zip(*options, strict=True)):
            tiled = (
                not transposed
                and padding == 0
                and dilation == 1
                and stride == weight[2 + d]
                and out[2 + d] * stride == x[2 + d]
            )
            outputs.append(f"o{d}" if tiled else f"o{d}!")
            inputs.append(f"(o{d} {kernel[d]})" if tiled else f"s{d}!")
            self.walked_twice *= 1 if tiled else x[2 + d]
        self.x: DimNames = ["n", "(g ci)", *inputs]
        self.weight: DimNames = (
            ["(g ci)", "co", *kernel] if transposed else ["(g co)", "ci", *kernel]
        )
        self.bias: DimNames = ["(g co)"]
        self.out: DimNames = ["n", "(g co)", *outputs]


def _per_dim(site: Site, position: int, rank: int) -> tuple[int, ...]:
    """A list with one number per spatial dim, or one for all of them."""
    sizes = integers(site, position)
    return sizes * rank if len(sizes) == 1 else sizes


@declare("aten.convolution.default")
def convolution(site: Site) -> Loops | None:
    """x, weight, bias?, stride, padding, dilation, transposed, …, groups"""
    x, weight = site.operands[0].shape, site.operands[1].shape
    (result,) = site.results
    if len(x) != len(weight) or result is None:
        return None
    named = _Named(site, (x, weight, result.shape), 3)
    text = pattern(present(site, (named.x, named.weight, named.bias)), [named.out])
    biased = is_tensor(site, 2)
    kinds: dict[str, LoopKind] = {"ci": "whole"} if biased else {}
    groups = ((0, 2), (1, 2)) if biased else ((0,), (1,))
    return loops(
        text,
        site,
        kinds=kinds,
        linear=groups,
        shapes=_groups(site, 8),
        work="convolution",
        flops=2 / named.walked_twice,
    )


def _groups(site: Site, position: int) -> Shapes:
    return ((position, (("g",),)),) if literal(site, position) != 1 else ()


@declare("aten.convolution_backward.default")
def convolution_backward(site: Site) -> Loops | None:
    """gradient, x, weight, bias sizes?, stride, …, groups, mask -> of x, of weight, of bias"""
    upper, x, weight = (operand.shape for operand in site.operands)
    if len(x) != len(weight):
        return None
    named = _Named(site, (x, weight, upper), 4)
    text = pattern([named.out, named.x, named.weight], [named.x, named.weight, named.bias])
    # the gradient of the bias does not depend on the input, so its shards are no partial sums
    kinds: dict[str, LoopKind] = {"ci": "whole"} if site.results[2] is not None else {}
    shapes = _groups(site, 9)
    if integers(site, 3):
        shapes = (*shapes, (3, (("g", "co"),)))
    products = sum(result is not None for result in site.results[:2])
    return loops(
        text,
        site,
        kinds=kinds,
        linear=((0,),),
        shapes=shapes,
        work="convolution",
        flops=2 * products / named.walked_twice,
    )
