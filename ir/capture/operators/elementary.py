"""Plait's own operators: attention, dropout and cross entropy, each one differentiable torch op.

Random masks are counter-based: whether element i of a tensor is dropped depends on the key, the
operator's stream id and i, its index in the full tensor; so a shard computes its shard of one mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .shard_offsets import positions, to_local_positions

LIBRARY = torch.library.Library("plait", "DEF")
OPS = torch.ops.plait

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

# Where operators that draw a mask have its rate, its stream and the index of its elements.
MASK_ARGUMENTS = {"plait.dropout.default": (2, 3, 4), "plait.attention.default": (7, 8, 9)}
UNIFORM = "plait.uniform.default"


def _signed(state: int) -> int:
    state &= _MASK
    return state - (1 << 64) if state >> 63 else state


def _mix(state: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014) on a Python integer."""
    for shift, factor in _MIX:
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return state ^ (state >> 31)


def _mix_tensor(state: Tensor) -> Tensor:
    """`_mix` on int64 tensors: products wrap, right shifts are made unsigned."""
    for shift, factor in _MIX:
        state = (state ^ _shift(state, shift)) * _signed(factor)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def call_key(seed: int, step: int, call_index: int) -> int:
    """The seed hash of one call in one step: element 0 of the call's key tensor."""
    state = _mix((seed + _GAMMA) & _MASK)
    for number in (step, call_index):
        state = _mix((state + (number + 1) * _GAMMA) & _MASK)
    return _signed(state)


def random_bits(key: Tensor, stream_id: int, index: list[int]) -> Tensor:
    """53 random bits of every element, flat, in the order of `index`.

    `key`: int64 [seed hash, first row]. `index`: shard offsets of the elements; a start of -1
    stands for the first row.
    """
    position = positions(index, key.device, key[1])
    stream = _mix_tensor(key[0] + _signed((stream_id + 1) * _GAMMA))
    state = _mix_tensor(stream + (position.reshape(-1) + 1) * _signed(_GAMMA))
    return _shift(state, 11)


def dropout_mask(key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    """Which elements dropout keeps: where their 53 random bits reach p * 2^53 (see `random_bits`)."""
    return random_bits(key, stream_id, index) >= int(p * (1 << 53))


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, for sums and exponentials; others unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# dropout


def _dropout(x: Tensor, key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    if p >= 1.0:
        return torch.zeros_like(x)
    keep = dropout_mask(key, p, stream_id, index).reshape(x.shape)
    return torch.where(keep, x * (1.0 / (1.0 - p)), torch.zeros((), dtype=x.dtype, device=x.device))


def _dropout_fake(x: Tensor, key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    return torch.empty_like(x)


def _dropout_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rest = inputs[2:]


def _dropout_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return OPS.dropout(gradient, key, *ctx.rest), None, None, None, None


# cross entropy


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, classes: list[int]
) -> tuple[Tensor, Tensor]:
    assert not classes, "shards of the classes are combined by the runtime"
    wide = widened(logits)
    logsumexp = torch.logsumexp(wide, -1)
    valid = labels != ignore_index
    losses = torch.where(valid, logsumexp - label_logits(wide, labels, valid, []), 0.0)
    return losses.to(logits.dtype), logsumexp


def _cross_entropy_fake(
    logits: Tensor, labels: Tensor, ignore_index: int, classes: list[int]
) -> tuple[Tensor, Tensor]:
    wide = torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype
    rows = logits.shape[0]
    return logits.new_empty(rows), logits.new_empty(rows, dtype=wide)


def label_logits(wide: Tensor, labels: Tensor, valid: Tensor, classes: list[int]) -> Tensor:
    """The logit of each row's label, 0 where the label is not in this shard of `classes`."""
    rows, here = to_local_positions(torch.where(valid, labels, 0), classes or [wide.shape[1], 1, 0])
    return torch.where(here, wide.gather(1, rows.unsqueeze(1)).squeeze(1), 0.0)


def _cross_entropy_backward(
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    logsumexp: Tensor,
    ignore_index: int,
    classes: list[int],
) -> Tensor:
    valid = labels != ignore_index
    result = torch.exp(widened(logits) - logsumexp.unsqueeze(1))
    rows, here = to_local_positions(
        torch.where(valid, labels, 0), classes or [logits.shape[1], 1, 0]
    )
    result.scatter_add_(1, rows.unsqueeze(1), -here.to(result.dtype).unsqueeze(1))
    result.mul_(torch.where(valid, gradient.to(result.dtype), 0.0).unsqueeze(1))
    return result.to(logits.dtype)


def _cross_entropy_backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _cross_entropy_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.ignore_index = inputs[2]


def _cross_entropy_gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, logsumexp = ctx.saved_tensors
    rest = (logits, labels, logsumexp, ctx.ignore_index)
    return OPS.cross_entropy_backward(gradient, *rest, []), None, None, None


def register(schema: str, kernel: Any, fake: Any) -> None:
    """Define one operator with one kernel for every device and its shape function."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"plait::{name}", fake, lib=LIBRARY)


register(
    "dropout(Tensor x, Tensor key, float p, int stream_id, int[] index) -> Tensor",
    _dropout,
    _dropout_fake,
)
torch.library.register_autograd(
    "plait::dropout", _dropout_gradient, setup_context=_dropout_context, lib=LIBRARY
)
register(
    "cross_entropy(Tensor logits, Tensor labels, int ignore_index, int[] classes)"
    " -> (Tensor, Tensor)",
    _cross_entropy,
    _cross_entropy_fake,
)
register(
    "cross_entropy_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor logsumexp, "
    "int ignore_index, int[] classes) -> Tensor",
    _cross_entropy_backward,
    _cross_entropy_backward_fake,
)
torch.library.register_autograd(
    "plait::cross_entropy",
    _cross_entropy_gradient,
    setup_context=_cross_entropy_context,
    lib=LIBRARY,
)
