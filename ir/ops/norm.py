"""Normalisations: statistics run over whole dims, everything else is independent."""

from __future__ import annotations

from math import prod

from ..model.loops import LoopKind, Loops, Site, Work, declare, loops
from .pattern import DimNames, dim_names, integer, integers, literal, pattern, present

WORK: Work = "reduce"


def _rows(site: Site, operand: int, position: int) -> tuple[DimNames, DimNames, DimNames]:
    """Dim names of the tensor, of the normalised dims, of the statistics."""
    shape = site.operands[operand].shape
    rank = len(shape) - len(integers(site, position))
    full = dim_names(shape, whole=range(rank, len(shape)))
    return full, full[rank:], full[:rank] + ["1"] * (len(shape) - rank)


@declare("aten.native_layer_norm.default", "aten.layer_norm.default", "aten.rms_norm.default")
def layer_norm(site: Site) -> Loops:
    """x, shape, weight?, bias? -> out (, mean, 1/std)"""
    full, inner, rows = _rows(site, 0, 1)
    inputs = present(site, (full, None, inner, inner))
    outputs = [full, rows, rows][: len(site.results)]
    return loops(pattern(inputs, outputs), site, work=WORK, flops=8)


@declare("aten.native_layer_norm_backward.default")
def layer_norm_backward(site: Site) -> Loops:
    """gradient, x, shape, mean, 1/std, weight?, bias? -> of x, of weight, of bias"""
    full, inner, rows = _rows(site, 0, 2)
    inputs = present(site, (full, full, None, rows, rows, inner, inner))
    return loops(pattern(inputs, [full, inner, inner]), site, linear=((0,),), work=WORK, flops=14)


@declare("aten._fused_rms_norm.default")
def rms_norm(site: Site) -> Loops:
    """x, shape, weight? -> out, 1/rms"""
    full, inner, rows = _rows(site, 0, 1)
    inputs = present(site, (full, None, inner))
    return loops(pattern(inputs, [full, rows]), site, work=WORK, flops=5)


@declare("aten.native_group_norm.default")
def group_norm(site: Site) -> Loops:
    """x, weight?, bias?, N, C, HxW, groups -> out, mean, 1/std"""
    full = ["b", "(g c!)", *dim_names(site.operands[0].shape[2:], "s", whole=range(9))]
    inputs = present(site, (full, ["(g c!)"], ["(g c!)"]))
    text = pattern(inputs, [full, ["b", "g"], ["b", "g"]])
    shapes = ((3, (("b",),)), (4, (("g", "c"),)), (6, (("g",),)))
    sizes = {"g": integer(site, 6)}
    return loops(text, site, sizes=sizes, shapes=shapes, work=WORK, flops=8)


@declare("aten.native_group_norm_backward.default")
def group_norm_backward(site: Site) -> Loops:
    """gradient, x, mean, 1/std, weight?, N, C, HxW, groups -> of x, of weight, of bias"""
    full = ["b", "(g c!)", *dim_names(site.operands[0].shape[2:], "s", whole=range(9))]
    inputs = present(site, (full, full, ["b", "g"], ["b", "g"], ["(g c!)"]))
    text = pattern(inputs, [full, ["(g c!)"], ["(g c!)"]])
    shapes = ((5, (("b",),)), (6, (("g", "c"),)), (8, (("g",),)))
    return loops(text, site, linear=((0,),), shapes=shapes, work=WORK, flops=14)


# target -> position of the flag that says whether statistics are those of the batch
BATCH: dict[str, int] = {
    "aten.native_batch_norm.default": 5,
    "aten.batch_norm.default": 5,
    "aten._native_batch_norm_legit.no_stats": 3,
    "aten._native_batch_norm_legit_functional.default": 5,
}


@declare(*BATCH)
def batch_norm(site: Site) -> Loops | None:
    """x, weight?, bias?, mean?, variance? -> out, mean, 1/std (, new mean, new variance)

    Channels are independent; batch and space are too when the statistics are given.
    """
    position = BATCH[site.op.target]
    training = literal(site, position) is True
    full, per = _channels(site.operands[0].shape, training)
    inputs = present(site, [full, *[per] * (position - 1)])
    given = [r for r in site.results[1:] if r is not None]
    if any(prod(statistics.shape) == 0 for statistics in given):
        return None
    outputs = [full, *[per] * (len(site.results) - 1)]
    return loops(pattern(inputs, outputs), site, work=WORK, flops=8)


@declare("aten.native_batch_norm_backward.default")
def batch_norm_backward(site: Site) -> Loops:
    """gradient, x, weight?, running mean?, variance?, mean?, 1/std? -> of x, weight, bias"""
    full, per = _channels(site.operands[1].shape, literal(site, 7) is True)
    inputs = present(site, (full, full, per, per, per, per, per))
    return loops(pattern(inputs, [full, per, per]), site, linear=((0,),), work=WORK, flops=14)


def _channels(shape: tuple[int, ...], training: bool) -> tuple[DimNames, DimNames]:
    batch, *space = dim_names((shape[0], *shape[2:]), "s", whole=range(9) if training else ())
    return [batch, "c", *space], ["c"]


@declare("plait.square_deviation.default")
def square_deviation(site: Site) -> Loops:
    """x, mean -> mean of (x - mean)^2 per channel"""
    full, per = _channels(site.operands[0].shape, False)
    kinds: dict[str, LoopKind] = {
        dim_name: "mean" for dim_name in full if dim_name not in ("c", "1")
    }
    return loops(pattern([full, per], [per]), site, kinds=kinds, work=WORK, flops=3)


@declare("plait.batch_norm.default")
def normalise(site: Site) -> Loops:
    """x, mean, 1/std, weight?, bias? -> of the shape of x"""
    full, per = _channels(site.operands[0].shape, False)
    inputs = present(site, (full, per, per, per, per))
    return loops(pattern(inputs, [full]), site, work=WORK, flops=4)


@declare("plait.batch_norm_sums.default")
def normalise_partial(site: Site) -> Loops:
    """gradient, x, mean, 1/std -> of bias, of weight"""
    full, per = _channels(site.operands[1].shape, False)
    text = pattern([full, full, per, per], [per, per])
    return loops(text, site, linear=((0,),), work=WORK, flops=5)


@declare("plait.batch_norm_backward.default")
def normalise_backward(site: Site) -> Loops:
    """gradient, x, mean, 1/std, weight?, mean of bias' and of weight's gradient -> of x"""
    full, per = _channels(site.operands[1].shape, False)
    inputs = present(site, (full, full, per, per, per, per, per))
    last = len(inputs) - 1
    groups = ((0, last - 1, last),)
    return loops(pattern(inputs, [full]), site, linear=groups, work=WORK, flops=8)


@declare("aten._weight_norm_interface.default")
def weight_norm(site: Site) -> Loops:
    """direction, length, dim -> weight, norms: one norm per place along `dim`"""
    full, per = _lengths(site, 0, 2)
    return loops(pattern([full, per], [full, per]), site, work=WORK, flops=4)


@declare("aten._weight_norm_interface_backward.default")
def weight_norm_backward(site: Site) -> Loops:
    """gradient, direction, length, norms, dim -> of direction, of length"""
    full, per = _lengths(site, 1, 4)
    text = pattern([full, full, per, per], [full, per])
    return loops(text, site, linear=((0,),), work=WORK, flops=6)


def _lengths(site: Site, operand: int, position: int) -> tuple[DimNames, DimNames]:
    shape = site.operands[operand].shape
    dim = integer(site, position) % len(shape)
    full = dim_names(shape, whole=set(range(len(shape))) - {dim})
    return full, [dim_name if d == dim else "1" for d, dim_name in enumerate(full)]
