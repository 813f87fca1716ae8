"""Normalisations: statistics run over whole dims, everything else is independent."""

from __future__ import annotations

from math import prod

from ..op import Loops, Site, declare, loops
from .pattern import Words, integers, is_tensor, literal, pattern, present, words

WORK = "reduce"


def _rows(site: Site, operand: int, position: int) -> tuple[Words, Words, Words]:
    """Words of the tensor, of the normalised dims, of the statistics."""
    shape = site.operands[operand].shape
    rank = len(shape) - len(integers(site, position))
    full = words(shape, whole=range(rank, len(shape)))
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
    return loops(
        pattern(inputs, [full, inner, inner]), site, linear=((0,),), work=WORK, flops=14
    )


@declare("aten._fused_rms_norm.default")
def rms_norm(site: Site) -> Loops:
    """x, shape, weight? -> out, 1/rms"""
    full, inner, rows = _rows(site, 0, 1)
    inputs = present(site, (full, None, inner))
    return loops(pattern(inputs, [full, rows]), site, work=WORK, flops=5)


@declare("aten._fused_rms_norm_backward.default")
def rms_norm_backward(site: Site) -> Loops:
    """gradient, x, shape, 1/rms, weight? -> of x, of weight"""
    full, inner, rows = _rows(site, 0, 2)
    inputs = present(site, (full, full, None, rows, inner))
    return loops(pattern(inputs, [full, inner]), site, linear=((0,),), work=WORK, flops=10)


@declare("aten.native_group_norm.default")
def group_norm(site: Site) -> Loops:
    """x, weight?, bias?, N, C, HxW, groups -> out, mean, 1/std"""
    full = ["b", "(g c!)", *words(site.operands[0].shape[2:], "s", whole=range(9))]
    inputs = present(site, (full, ["(g c!)"], ["(g c!)"]))
    text = pattern(inputs, [full, ["b", "g"], ["b", "g"]])
    shapes = ((3, (("b",),)), (4, (("g", "c"),)), (6, (("g",),)))
    return _grouped(site, text, 6, shapes, (), 8)


@declare("aten.native_group_norm_backward.default")
def group_norm_backward(site: Site) -> Loops:
    """gradient, x, mean, 1/std, weight?, N, C, HxW, groups -> of x, of weight, of bias"""
    full = ["b", "(g c!)", *words(site.operands[0].shape[2:], "s", whole=range(9))]
    inputs = present(site, (full, full, ["b", "g"], ["b", "g"], ["(g c!)"]))
    text = pattern(inputs, [full, ["(g c!)"], ["(g c!)"]])
    shapes = ((5, (("b",),)), (6, (("g", "c"),)), (8, (("g",),)))
    return _grouped(site, text, 8, shapes, ((0,),), 14)


def _grouped(
    site: Site,
    text: str,
    position: int,
    shapes: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...],
    linear: tuple[tuple[int, ...], ...],
    flops: float,
) -> Loops:
    return loops(text, site, linear=linear, shapes=shapes, work=WORK, flops=flops)


@declare(
    "aten.native_batch_norm.default", "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit.no_stats", "aten.batch_norm.default",
    "aten._native_batch_norm_legit_functional.default",
)  # fmt: skip
def batch_norm(site: Site) -> Loops | None:
    """x, weight?, bias?, mean?, variance? -> out, mean, 1/std: only channels are independent."""
    if site.op.target in ("aten.batch_norm.default",) and literal(site, 5) is not False:
        return None
    full = _channels(site.operands[0].shape)
    per = ["c"] if full[1] != "1" else ["1"]
    inputs = present(site, (full, per, per, per, per))
    outputs = [full, per, per, per, per][: len(site.results)]
    statistics = site.results[1] if len(site.results) > 1 else None
    if statistics is not None and prod(statistics.shape) == 0:
        return None
    return loops(pattern(inputs, outputs), site, work=WORK, flops=8)


@declare("aten.native_batch_norm_backward.default")
def batch_norm_backward(site: Site) -> Loops:
    """gradient, x, weight?, running mean?, variance?, mean?, 1/std? -> of x, weight, bias"""
    full = _channels(site.operands[0].shape)
    per = ["c"] if full[1] != "1" else ["1"]
    inputs = present(site, (full, full, per, per, per, per, per))
    return loops(pattern(inputs, [full, per, per]), site, linear=((0,),), work=WORK, flops=14)


def _channels(shape: tuple[int, ...]) -> Words:
    channel = "c" if shape[1] != 1 else "1"
    batch, *space = words((shape[0], *shape[2:]), "s", whole=range(9))
    return [batch, channel, *space]


__all__ = ["batch_norm", "group_norm", "is_tensor", "layer_norm", "rms_norm"]
