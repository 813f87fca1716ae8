"""Convolutions: batch, groups and channels may be split, space and kernel are whole."""

from __future__ import annotations

from math import prod

from ..op import Dims, LoopKind, Loops, Site, declare, loops
from .pattern import Words, integers, is_tensor, literal, pattern, present, words

Shapes = tuple[tuple[int, Dims], ...]


class _Named:
    """Words of input, weight, bias and output; channels are g groups of ci in and co out."""

    def __init__(
        self, x: tuple[int, ...], weight: tuple[int, ...], out_space: int, transposed: bool
    ) -> None:
        self.space = words(x[2:], "s", whole=range(9))
        kernel = words(weight[2:], "k", whole=range(9))
        made = [f"o{d}!" for d in range(out_space)]
        self.x: Words = ["n", "(g ci)", *self.space]
        self.weight: Words = ["(g ci)", "co", *kernel] if transposed else ["(g co)", "ci", *kernel]
        self.bias: Words = ["(g co)"]
        self.out: Words = ["n", "(g co)", *made]
        self.input_points = prod(x[2:])


@declare("aten.convolution.default")
def convolution(site: Site) -> Loops | None:
    """x, weight, bias?, stride, padding, dilation, transposed, …, groups"""
    x, weight = site.operands[0].shape, site.operands[1].shape
    if len(x) != len(weight):
        return None
    transposed = literal(site, 6) is True
    named = _Named(x, weight, len(x) - 2, transposed)
    text = pattern(present(site, (named.x, named.weight, named.bias)), [named.out])
    biased = is_tensor(site, 2)
    kinds: dict[str, LoopKind] = {"ci": "whole"} if biased else {}
    groups = ((0, 2), (1, 2)) if biased else ((0,), (1,))
    return loops(
        text, site, kinds=kinds, linear=groups, shapes=_groups(site, 8),
        work="convolution", flops=2 / named.input_points,
    )  # fmt: skip


def _groups(site: Site, position: int) -> Shapes:
    return ((position, (("g",),)),) if literal(site, position) != 1 else ()


@declare("aten.convolution_backward.default")
def convolution_backward(site: Site) -> Loops | None:
    """gradient, x, weight, bias sizes?, stride, …, groups, mask -> of x, of weight, of bias"""
    upper, x, weight = (operand.shape for operand in site.operands)
    if len(x) != len(weight):
        return None
    named = _Named(x, weight, len(upper) - 2, literal(site, 7) is True)
    text = pattern([named.out, named.x, named.weight], [named.x, named.weight, named.bias])
    # the gradient of the bias does not depend on the input, so its shards are no partial sums
    kinds: dict[str, LoopKind] = {"ci": "whole"} if site.results[2] is not None else {}
    shapes = _groups(site, 9)
    if integers(site, 3):
        shapes = (*shapes, (3, (("g", "co"),)))
    products = sum(result is not None for result in site.results[:2])
    return loops(
        text, site, kinds=kinds, linear=((0,),), shapes=shapes,
        work="convolution", flops=2 * products / named.input_points,
    )  # fmt: skip
