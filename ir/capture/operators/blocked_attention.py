"""Attention by the formulas of FlashAttention (Dao 2022, B.4), in blocks of the scores.

For what the kernels of torch cannot do: dropout whose mask does not depend on the sharding, widths of
queries and values that differ, shards of keys, the gradient of a bias. Never more than one block of
scores, or two in backward, is in memory: on a CPU as many as stay in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .elementary import OPS, BlockElements, wide_dtype, widened

SCORES = BlockElements(1 << 18, 1 << 25)
NEXT_TO_ZERO = {torch.float32: -80.0, torch.float64: -690.0}  # exponents


class Mask(NamedTuple):
    """What the scores go through: `bias` [b n s t] is added or, if boolean, says who attends; sizes of
    it may be 1. With `dropout` > 0 weights are dropped by `key` and a stream."""

    bias: Tensor | None
    causal: bool
    scale: float
    dropout: float
    key: Tensor | None
    stream_id: int
    elements: list[int]  # shard offsets of the weights


class Block(NamedTuple):
    """Scores of one sample: several heads with all rows, or some rows of one head."""

    batch: int
    heads: slice
    groups: slice  # of key heads
    rows: slice
    columns: int  # from 0 on; those behind the last row of a causal mask are left out

    def queries(self, x: Tensor, columns: int) -> Tensor:
        """[groups, rows of all heads of a group, columns] of a tensor [b n s columns], widened."""
        part = widened(x[self.batch, self.heads, self.rows])
        return part.reshape(self.groups.stop - self.groups.start, -1, columns)

    def keys(self, x: Tensor) -> Tensor:
        """[groups, columns of the scores, …] of a tensor [b g t …]."""
        return x[self.batch, self.groups, : self.columns]

    def by_head(self, x: Tensor) -> Tensor:
        """[heads, rows, …] of a tensor [groups, rows of all heads of a group, …]."""
        heads, rows = self.heads.stop - self.heads.start, self.rows.stop - self.rows.start
        return x.view(heads, rows, x.shape[-1])

    def place_in(self, x: Tensor) -> tuple[slice, ...]:
        """Where the block lies in a tensor [b n s t] of which any size may be 1."""
        parts = (slice(self.batch, self.batch + 1), self.heads, self.rows, slice(self.columns))
        return tuple(
            slice(None) if size == 1 else part for size, part in zip(x.shape, parts, strict=True)
        )


def blocks(q: Tensor, k: Tensor, causal: bool) -> Iterator[Block]:
    """All scores of q [b n s d] and k [b g t d]."""
    (b, n, s, _), (g, t) = q.shape, k.shape[1:3]
    elements = SCORES.of(q)
    shared = n // g  # query heads of one key head
    rows = s if s * t <= elements else max(elements // t, 1)
    heads = 1
    if shared * s * t <= elements:
        heads = shared * min(g, elements // max(shared * s * t, 1))
    for batch in range(b):
        for head in range(0, n, heads):
            last = min(head + heads, n)
            groups = slice(head // shared, (last - 1) // shared + 1)
            for row in range(0, s, rows):
                end = min(row + rows, s)
                columns = min(t, end) if causal else t
                yield Block(batch, slice(head, last), groups, slice(row, end), columns)


class Scores:
    """Scores of q and k after the mask, block by block; and dropout of their weights."""

    def __init__(self, q: Tensor, k: Tensor, mask: Mask) -> None:
        self.q, self.k, self.mask = q, k, mask
        self.shape = (*q.shape[:3], k.shape[2])
        self.masks: dict[tuple[int, int], Tensor] = {}

    def blocks(self) -> Iterator[Block]:
        return blocks(self.q, self.k, self.mask.causal)

    def of(self, block: Block) -> Tensor:
        """[groups, rows of all heads of a group, columns]."""
        queries, keys = block.queries(self.q, self.q.shape[-1]), widened(block.keys(self.k))
        scores = torch.bmm(queries * self.mask.scale, keys.transpose(1, 2))
        by_head = block.by_head(scores)
        if self.mask.bias is not None:
            bias = self.mask.bias[block.place_in(self.mask.bias)][0]
            by_head.add_(additive(bias, scores.dtype) if bias.dtype == torch.bool else bias)
        if self.mask.causal and block.rows.start < block.columns:
            by_head[..., block.rows.start :].add_(self.later(block))
        return scores

    def later(self, block: Block) -> Tensor:
        """[rows, columns] from the first column on that lies behind a row: -inf behind rows, else 0, as
        sums are quicker than choices. Blocks of whole heads share it."""
        rows, columns = block.rows, block.columns - block.rows.start
        if (rows.start, rows.stop) not in self.masks:
            self.masks.clear()
            shape, dtype = (rows.stop - rows.start, columns), wide_dtype(self.q)
            mask = self.q.new_full(shape, -torch.inf, dtype=dtype)
            self.masks[rows.start, rows.stop] = mask.triu_(1)
        return self.masks[rows.start, rows.stop]

    def drop(self, block: Block, x: Tensor, out: Tensor) -> Tensor:
        """`out`: what dropout leaves of `x`, of the shape of a block's scores; may be `x`."""
        mask, (_, n, s, t) = self.mask, self.shape
        if mask.dropout > 0.0:
            assert mask.key is not None, "attention with dropout needs a key"
            first = ((block.batch * n + block.heads.start) * s + block.rows.start) * t
            rows = (tensor.view(-1, block.columns) for tensor in (x, out))
            stream = mask.key, mask.dropout, mask.stream_id, mask.elements
            OPS.dropout_rows(*rows, *stream, first, t)
        return out


def additive(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, of a bias that may say who attends instead."""
    if bias.dtype != torch.bool:
        return bias.to(dtype)
    zero = torch.zeros((), dtype=dtype, device=bias.device)
    return torch.where(bias, zero, -torch.inf)


def exponentials(scores: Tensor, peak: Tensor) -> Tensor:
    """exp(scores - peak) in place, by which rows without a finite score mean nothing. What is next to
    zero is set to a number that is, for exp is slow where it would have to round to zero."""
    least = NEXT_TO_ZERO[scores.dtype]
    return scores.sub_(peak.masked_fill(peak.isneginf(), 0.0)).clamp_(min=least).exp_()


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Results [b n s e], of which [b s n e] is contiguous, and logsumexp [b n s].

    A row that attends to nothing gives zeros, as torch's own attention does."""
    (b, n, s, _), e = q.shape, v.shape[-1]
    out = q.new_empty(b, s, n, e).transpose(1, 2)
    logsumexp = q.new_empty(b, n, s, dtype=wide_dtype(q))
    scores = Scores(q, k, mask)
    for block in scores.blocks():
        weights = scores.of(block)
        peak = weights.amax(-1, keepdim=True)
        total = exponentials(weights, peak).sum(-1, keepdim=True)
        place = block.batch, block.heads, block.rows
        logsumexp[place] = block.by_head(peak + total.log()).squeeze(-1)
        values = torch.bmm(scores.drop(block, weights, weights), widened(block.keys(v)))
        out[place] = block.by_head(values.div_(total.masked_fill_(peak.isneginf(), torch.inf)))
    return out, logsumexp


class Gradients(NamedTuple):
    """Of the inputs of attention, in their shapes and types; of the bias only where it is asked for."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


class Results(NamedTuple):
    """What forward gave, and the gradient of its first result."""

    gradient: Tensor
    out: Tensor
    logsumexp: Tensor


def backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, results: Results, *, with_bias: bool = False
) -> Gradients:
    """Gradients, of which each [b heads s d] has the memory layout [b s heads d]."""
    to_q, to_k, to_v = (_row_major(x, x.dtype) for x in (q, k, v))
    sum_k, sum_v = (_summed(to) for to in (to_k, to_v))
    bias = mask.bias
    to_bias = (
        torch.zeros_like(bias, dtype=wide_dtype(q)) if with_bias and bias is not None else None
    )
    scores, d, e = Scores(q, k, mask), q.shape[-1], v.shape[-1]
    for block in scores.blocks():
        place = block.batch, block.heads, block.rows
        upper, result = (block.queries(x, e) for x in (results.gradient, results.out))
        logsumexp = results.logsumexp[place].reshape(*upper.shape[:2], 1)
        row = (upper * result).sum(-1, keepdim=True)
        weights = exponentials(scores.of(block), logsumexp)
        other = torch.empty_like(weights) if mask.dropout > 0.0 else weights
        dropped = scores.drop(block, weights, other)
        block.keys(sum_v).baddbmm_(dropped.transpose(1, 2), upper)
        values = widened(block.keys(v)).transpose(1, 2)
        other = torch.bmm(upper, values, out=other if other is not weights else None)
        to_scores = scores.drop(block, other, other).sub_(row).mul_(weights)
        del weights, dropped
        keys = widened(block.keys(k))
        to_q[place] = block.by_head(torch.bmm(to_scores, keys).mul_(mask.scale))
        queries = block.queries(q, d) * mask.scale
        block.keys(sum_k).baddbmm_(to_scores.transpose(1, 2), queries)
        if to_bias is not None:
            _add_bias(to_bias, block, block.by_head(to_scores))
    for to, total in ((to_k, sum_k), (to_v, sum_v)):
        if to is not total:
            to.copy_(total)
    return Gradients(
        to_q, to_k, to_v, None if to_bias is None or bias is None else to_bias.to(bias.dtype)
    )


def _row_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    b, n, s, d = x.shape
    return x.new_empty(b, s, n, d, dtype=dtype).transpose(1, 2)


def _summed(result: Tensor) -> Tensor:
    """Zeros to sum a result in: the result itself, or wider ones."""
    wide = wide_dtype(result)
    total = result if wide == result.dtype else _row_major(result, wide)
    return total.zero_()


def _add_bias(to_bias: Tensor, block: Block, to_scores: Tensor) -> None:
    """Add a block's gradient of the scores to that of the bias, of which any size may be 1."""
    place = block.place_in(to_bias)
    to_bias[place] += to_scores.unsqueeze(0).sum_to_size(to_bias[place].shape)
