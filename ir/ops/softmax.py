"""Softmax and its relatives: whole along their dim."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import dim_names, integer, pattern


@declare(
    "aten._softmax.default",
    "aten._log_softmax.default",
    "aten.softmax.int",
    "aten.log_softmax.int",
    "aten._safe_softmax.default",
)
def softmax(site: Site) -> Loops:
    return _along(site, 1, (), 5)


@declare("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
def softmax_backward(site: Site) -> Loops:
    """Gradient and result in, gradient out; linear in the gradient."""
    return _along(site, 2, ((0,),), 5)


def _along(site: Site, position: int, linear: tuple[tuple[int, ...], ...], flops: float) -> Loops:
    shape = site.operands[0].shape
    dim = integer(site, position, -1) % max(len(shape), 1)
    full = dim_names(shape, whole=(dim,))
    text = pattern([full] * len(site.operands), [full])
    return loops(text, site, linear=linear, work="reduce", flops=flops)
