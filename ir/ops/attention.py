"""Attention and dropout: random masks depend on where in the whole tensor a shard lies."""

from __future__ import annotations

from collections.abc import Callable

from ..op import Dims, Loops, Site, declare, loops
from .pattern import Words, dims, is_tensor, literal, pattern, present, words

KEY = ["key!"]


@declare("plait.attention.default")
def attention(site: Site) -> Loops:
    """q, k, v, bias?, key?, causal, scale, dropout, salt, index -> out, logsumexp"""
    named = _Named(site, first=0, rest=5)
    inputs = present(site, (*named.qkv, named.bias, KEY))
    text = pattern(inputs, [named.out, named.rows])
    return named.loops(text, flops=lambda d, e: 2 * (d + e))


@declare("plait.attention_backward.default")
def attention_backward(site: Site) -> Loops:
    """gradient, q, k, v, bias?, key?, out, logsumexp, causal, … -> of q, k, v"""
    return _backward(site, ())


@declare("plait.attention_backward_bias.default")
def attention_backward_bias(site: Site) -> Loops:
    """The same and the gradient of the bias, a sum over the dims that it broadcasts along."""
    return _backward(site, (_Named(site, first=1, rest=8).bias,))


def _backward(site: Site, more: tuple[Words, ...]) -> Loops:
    named = _Named(site, first=1, rest=8)
    inputs = present(site, (named.out, *named.qkv, named.bias, KEY, named.out, named.rows))
    text = pattern(inputs, [*named.qkv, *more])
    # five products: scores again, and the gradients of weights, q, k and v
    return named.loops(text, linear=((0,),), flops=lambda d, e: 6 * d + 4 * e)


class _Named:
    """Words for the tensors of attention: g key heads, r query heads per key head."""

    def __init__(self, site: Site, first: int, rest: int) -> None:
        self.site = site
        self.causal = literal(site, rest) is True
        self.position = rest + 4
        self.random = literal(site, rest + 2) not in (0, 0.0, None)
        self.d = site.operands[first].shape[3]
        self.e = site.operands[first + 2].shape[3]
        s = "s!" if self.causal else "s"
        heads = "(g r)"
        self.qkv: tuple[Words, Words, Words] = (
            ["b", heads, s, "d!"],
            ["b", "g", "t!", "d!"],
            ["b", "g", "t!", "e!"],
        )
        self.out: Words = ["b", heads, s, "e!"]
        self.rows: Words = ["b", heads, s]
        self.bias: Words = []
        if is_tensor(site, first + 3):
            full = ["b", heads, s, "t!"]
            shape = site.operands[first + 3].shape
            self.bias = ["1" if size == 1 else w for size, w in zip(shape, full, strict=True)]

    @property
    def mask(self) -> Dims:
        return dims(["b", "(g r)", "s", "t"])

    def loops(
        self, text: str, flops: Callable[[int, int], int], linear: tuple[tuple[int, ...], ...] = ()
    ) -> Loops:
        count = flops(self.d, self.e) / (self.d * self.e) * (0.5 if self.causal else 1.0)
        places = (self.position, self.mask) if self.random else None
        return loops(text, self.site, linear=linear, work="attention", flops=count, places=places)


@declare("plait.dropout.default")
def dropout(site: Site) -> Loops:
    """x, key, p, salt, index -> x with elements dropped"""
    full = words(site.operands[0].shape)
    text = pattern([full, KEY], [full])
    return loops(text, site, linear=((0,),), flops=2, places=(4, dims(full)))
