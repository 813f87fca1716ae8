"""Attention as one operator, `plait::attention`, with its backward pass as another.

    q [b n s d], k [b g t d], v [b g t e], bias [b n s t] -> out [b n s e], logsumexp [b n s]

g divides n (query heads share key heads in consecutive groups). `bias` is a boolean mask (True
attends) or is added to the scores, any of its sizes may be 1; `causal` masks column > row, both
counted from 0 in the full tensor: `rows` and `columns` are the shard offsets of queries or
keys (`shard_offsets`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_private import (
    EFFICIENT_ATTENTION,
    EFFICIENT_ATTENTION_BACKWARD,
    FLASH_ATTENTION,
    FLASH_ATTENTION_BACKWARD,
)
from . import blocked_attention
from .elementary import LIBRARY, OPS, register, wide_dtype, widened
from .shard_offsets import line_positions

_REST = (
    "bool causal, float scale, float dropout, int stream_id, int[] index, int[] rows, int[] columns"
)
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? key"


class AttentionOptions(NamedTuple):
    """The arguments after the tensors; `mask`: shard offsets of dropout's elements."""

    causal: bool
    scale: float
    dropout: float
    stream_id: int
    mask: list[int]
    rows: list[int]
    columns: list[int]

    def mask_of(self, bias: Tensor | None, key: Tensor | None) -> blocked_attention.Mask:
        return blocked_attention.Mask(
            bias, self.causal, self.scale, self.dropout, key, self.stream_id, self.mask
        )

    def masked(
        self, q: Tensor, k: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, AttentionOptions]:
        """Materialise a causal mask over shards; over unsharded queries and keys keep the flag."""
        if not self.causal or not (self.rows or self.columns):
            return bias, self
        rows = line_positions(self.rows, q.shape[2], q.device)
        columns = line_positions(self.columns, k.shape[2], q.device)
        allowed = (columns <= rows.unsqueeze(1))[None, None]
        if bias is not None:
            scores = _additive(bias, widened(q).dtype)
            assert scores is not None
            return scores.masked_fill(~allowed, float("-inf")), self._replace(causal=False)
        return allowed, self._replace(causal=False)


def _additive(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else blocked_attention.additive(bias, dtype)


def _flash_fits(q: Tensor, v: Tensor, bias: Tensor | None, rest: AttentionOptions) -> bool:
    # a row may attend to none of a shard of keys, which the kernel cannot express
    plain = rest.dropout == 0.0 and q.shape[-1] == v.shape[-1] and not rest.columns
    return plain and q.device.type == "cpu" and not (rest.causal and bias is not None)


def _efficient_fits(q: Tensor, bias: Tensor | None, dropout: float) -> bool:
    return q.device.type == "cuda" and bias is None and dropout == 0.0


def _grouped(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def _ungrouped(gradient: Tensor, keys: Tensor) -> Tensor:
    b, n, t, d = gradient.shape
    if n == keys.shape[1]:
        return _row_major(gradient)
    return _row_major(gradient.reshape(b, keys.shape[1], -1, t, d).sum(2))


def _row_major(x: Tensor) -> Tensor:
    """[b n s d] with the memory layout [b s n d], so that the next reshape copies nothing."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _dense(*tensors: Tensor) -> list[Tensor]:
    """Tensors whose rows have no gaps: kernels read them so, and do not ask."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    bias, rest = AttentionOptions(*options).masked(q, k, bias)
    q, k, v = _dense(q, k, v)
    if _flash_fits(q, v, bias, rest):
        mask = _additive(bias, q.dtype)
        out, logsumexp = FLASH_ATTENTION(
            q, k, v, 0.0, rest.causal, attn_mask=mask, scale=rest.scale
        )
        return _row_major(out), logsumexp.contiguous()
    n, s = q.shape[1:3]
    if _efficient_fits(q, bias, rest.dropout):
        keys, values = _grouped(k, n), _grouped(v, n)
        out, logsumexp, _, _ = EFFICIENT_ATTENTION(
            q, keys, values, None, True, 0.0, rest.causal, scale=rest.scale
        )
        return _row_major(out), logsumexp[..., :s].contiguous()
    return blocked_attention.forward(q, k, v, rest.mask_of(bias, key))


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    b, n, s = q.shape[:3]
    out = q.new_empty(b, s, n, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(b, n, s, dtype=wide_dtype(q))


def _attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    bias, rest = AttentionOptions(*options).masked(q, k, bias)
    gradient, q, k, v, out = _dense(gradient, q, k, v, out)
    n, s = q.shape[1:3]
    if _flash_fits(q, v, bias, rest):
        mask = _additive(bias, q.dtype)
        return FLASH_ATTENTION_BACKWARD(
            gradient, q, k, v, out, logsumexp, 0.0, rest.causal, attn_mask=mask, scale=rest.scale
        )
    if _efficient_fits(q, bias, rest.dropout):
        # the kernel expects rows padded to 32 and an unused dropout state
        padded = torch.nn.functional.pad(logsumexp, (0, -s % 32))
        state = torch.zeros((), dtype=torch.int64)
        to_q, to_keys, to_values, _ = EFFICIENT_ATTENTION_BACKWARD(
            gradient,
            q,
            _grouped(k, n),
            _grouped(v, n),
            None,
            out,
            padded,
            state,
            state,
            0.0,
            [True, True, True, False],
            rest.causal,
            scale=rest.scale,
        )
        return _row_major(to_q), _ungrouped(to_keys, k), _ungrouped(to_values, v)
    results = blocked_attention.Results(gradient, out, logsumexp)
    return blocked_attention.backward(q, k, v, rest.mask_of(bias, key), results)[:3]


def _attention_backward_bias(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    key: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_bias, rest = AttentionOptions(*options).masked(q, k, bias)
    mask, results = (
        rest.mask_of(scores_bias, key),
        blocked_attention.Results(gradient, out, logsumexp),
    )
    to_q, to_k, to_v, to_bias = blocked_attention.backward(q, k, v, mask, results, with_bias=True)
    assert to_bias is not None
    return to_q, to_k, to_v, to_bias.to(bias.dtype)


def _empty_like(x: Tensor) -> Tensor:
    """As `_row_major` gives it."""
    b, n, s, d = x.shape
    return x.new_empty(b, s, n, d).transpose(1, 2)


def _attention_backward_fake(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Any:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _attention_backward_bias_fake(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *_: Any
) -> Any:
    return _empty_like(q), _empty_like(k), _empty_like(v), torch.empty_like(bias)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.rest = inputs[5:]


def _gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved, bias = ctx.saved_tensors, None
    if ctx.needs_input_grad[3]:
        to_q, to_k, to_v, bias = OPS.attention_backward_bias(gradient, *saved, *ctx.rest)
    else:
        to_q, to_k, to_v = OPS.attention_backward(gradient, *saved, *ctx.rest)
    return to_q, to_k, to_v, bias, *(None,) * 8


_SAVED = f"Tensor gradient, {_INPUTS}, Tensor out, Tensor logsumexp, {_REST}"
register(f"attention({_INPUTS}, {_REST}) -> (Tensor, Tensor)", _attention, _attention_fake)
register(
    f"attention_backward({_SAVED}) -> (Tensor, Tensor, Tensor)",
    _attention_backward,
    _attention_backward_fake,
)
register(
    f"attention_backward_bias({_SAVED.replace('Tensor? bias', 'Tensor bias')})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _attention_backward_bias,
    _attention_backward_bias_fake,
)
torch.library.register_autograd("plait::attention", _gradient, setup_context=_context, lib=LIBRARY)
