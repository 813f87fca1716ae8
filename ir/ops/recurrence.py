"""Recurrent layers: steps and features are whole, samples are independent."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from ..model.model import Ref
from .pattern import DimNames, pattern, present

STATE: DimNames = ["n", "h!"]
OUT: DimNames = ["t!", "n", "h!"]


def _layer() -> tuple[DimNames, ...]:
    """x, h, c, weights of both products, biases, lengths"""
    return (["t!", "n", "i!"], STATE, STATE, ["g!", "i!"], ["g!", "h!"], ["g!"], ["g!"], ["n"])


@declare("plait.recurrence.default")
def recurrence(site: Site) -> Loops:
    """x, h, c, weights, biases, lengths -> out, last h, last c"""
    text = pattern(present(site, _layer()), [OUT, STATE, STATE])
    return loops(text, site, work="gemm", flops=_flops(site, 0))


@declare("plait.recurrence_backward.default")
def recurrence_backward(site: Site) -> Loops:
    """gradients of the results, then what forward reads -> of x, h, c, weights, biases"""
    biased = isinstance(site.op.args[8], Ref)
    inputs = present(site, (OUT, STATE, STATE, *_layer()))
    made = [*_layer()[:5], *(_layer()[5:7] if biased else ([], []))]
    text = pattern(inputs, made)
    return loops(text, site, linear=((0, 1, 2),), work="gemm", flops=3 * _flops(site, 3))


def _flops(site: Site, first: int) -> float:
    """Both products of a step, per point of the nest of steps, samples, inputs, states and gates."""
    wide, state = site.operands[first].shape[2], site.operands[first + 1].shape[1]
    return 2 * (wide + state) / (wide * state)
