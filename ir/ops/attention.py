"""Attention and dropout: random and causal masks depend on the offset of a shard."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..model.loops import Loops, OperatorCollective, ShardOffsets, Site, declare, loops
from ..model.tensor import ITEM_BYTES
from .pattern import DimNames, dim_names, dims, is_tensor, literal, pattern, present

KEY = ["key!"]


@declare("plait.attention.default", shard_aware=True)
def attention(site: Site) -> Loops:
    """q, k, v, bias?, key?, causal, scale, dropout, salt, places -> out, logsumexp

    Split over the keys, every rank attends to its local ones, and the results are joined by their
    logsumexp: what blockwise attention computes (Liu et al. 2023, Ring Attention)."""
    named = _Named(site, first=0, rest=5)
    inputs = present(site, (*named.qkv, named.bias, KEY))
    return named.loops(pattern(inputs, [named.out, named.rows]), flops=lambda d, e: 2 * (d + e))


@declare("plait.attention_backward.default", shard_aware=True)
def attention_backward(site: Site) -> Loops:
    """gradient, q, k, v, bias?, key?, out, logsumexp, causal, … -> of q, k, v"""
    return _backward(site, ())


@declare("plait.attention_backward_bias.default", shard_aware=True)
def attention_backward_bias(site: Site) -> Loops:
    """The same and the gradient of the bias, a sum over the dims that it broadcasts along."""
    return _backward(site, (_Named(site, first=1, rest=8).bias,))


def _backward(site: Site, more: tuple[DimNames, ...]) -> Loops:
    named = _Named(site, first=1, rest=8)
    inputs = present(site, (named.out, *named.qkv, named.bias, KEY, named.out, named.rows))
    text = pattern(inputs, [*named.qkv, *more])
    # five products: scores again, and the gradients of weights, q, k and v
    return named.loops(text, linear=((0,),), flops=lambda d, e: 6 * d + 4 * e)


def working_bytes(site: Site, block_elements: int) -> int:
    """Bytes of the blocks of scores that attention in blocks works on, at most so many elements at once;
    0 where one kernel of the framework computes all (see `ir/capture/operators/blocked_attention`)."""
    op = site.op
    first = int("backward" in op.target)
    q, k, v = site.operands[first : first + 3]
    rest = 8 if first else 5
    (batch, heads, s, d), (groups, t), e = q.shape, k.shape[1:3], v.shape[3]
    causal, dropout, columns = op.args[rest], op.args[rest + 2], op.args[rest + 6 : rest + 7]
    bias = site.operands[first + 3] if op.args[first + 3] is not None else None
    if not dropout and d == e and not any(columns) and not (causal and bias is not None):
        return 0
    shared = heads // groups
    rows = s if s * t <= block_elements else max(block_elements // t, 1)
    together = shared * min(groups, max(block_elements // max(shared * s * t, 1), 1))
    together = together if shared * s * t <= block_elements else 1
    scores, lines = together * rows * t, together * rows
    wide = max(4, ITEM_BYTES[q.dtype])
    mask = rows * min(rows, t) if causal else 0
    if bias is not None and bias.dtype == "bool":
        sizes = zip(bias.shape[1:], (together, rows, t), strict=True)
        mask += prod(min(size, most) for size, most in sizes)
    keys = max(together // shared, 1) * t * (d + e) * (wide > ITEM_BYTES[q.dtype])
    if not first:
        return wide * (scores + lines * (d + e + 2) + keys + mask)
    keys *= batch * groups
    return wide * (2 * scores + lines * (2 * d + 3 * e + 2) + keys + mask)


class _Named:
    """Words for the tensors of attention: g key heads, r query heads per key head."""

    def __init__(self, site: Site, first: int, rest: int) -> None:
        self.site = site
        self.backward = first > 0
        self.causal = literal(site, rest) is True
        self.rest = rest
        self.random = literal(site, rest + 2) not in (0, 0.0, None)
        self.d = site.operands[first].shape[3]
        self.e = site.operands[first + 2].shape[3]
        heads = "(g r)"
        self.qkv: tuple[DimNames, DimNames, DimNames] = (
            ["b", heads, "s", "d!"],
            ["b", "g", "t", "d!"],
            ["b", "g", "t", "e!"],
        )
        self.out: DimNames = ["b", heads, "s", "e!"]
        self.rows: DimNames = ["b", heads, "s"]
        self.bias: DimNames = []
        if is_tensor(site, first + 3):
            full = ["b", heads, "s", "t"]
            shape = site.operands[first + 3].shape
            self.bias = ["1" if size == 1 else w for size, w in zip(shape, full, strict=True)]

    @property
    def shard_offsets(self) -> ShardOffsets:
        """The dropout mask's elements; rows and columns of a causal mask."""
        offsets: ShardOffsets = ()
        if self.random:
            offsets += ((self.rest + 4, dims(["b", "(g r)", "s", "t"])),)
        if self.causal:
            offsets += ((self.rest + 5, dims(["s"])), (self.rest + 6, dims(["t"])))
        return offsets

    def loops(
        self, text: str, flops: Callable[[int, int], int], linear: tuple[tuple[int, ...], ...] = ()
    ) -> Loops:
        count = flops(self.d, self.e) / (self.d * self.e) * (0.5 if self.causal else 1.0)
        rows, out = dims(self.rows), dims(self.out)
        joined = (
            OperatorCollective("all_reduce", out, 4),
            OperatorCollective("all_reduce", rows, 4, 2),
        )
        return loops(
            text,
            self.site,
            linear=linear,
            work="attention",
            flops=count,
            shard_offsets=self.shard_offsets,
            kinds={} if self.backward else {"t": "joint"},
            exchanges=() if self.backward else joined,
        )


@declare("plait.dropout.default", shard_aware=True)
def dropout(site: Site) -> Loops:
    """x, key, p, salt, places -> x with elements dropped"""
    full = dim_names(site.operands[0].shape)
    text = pattern([full, KEY], [full])
    return loops(text, site, linear=((0,),), flops=2, shard_offsets=((4, dims(full)),))
