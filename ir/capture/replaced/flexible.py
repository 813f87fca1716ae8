"""flex_attention in terms of smaller functions: torch has no backward of it on a CPU, where models are
recorded.

    q [b n s d], k [b g t d], v [b g t e] -> out [b n s e], logsumexp [b n s], largest scores [b n s]

What users write for one score is called with indices that broadcast to all of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MODULE = "torch.nn.attention.flex_attention"
Indices = tuple[Tensor, Tensor, Tensor, Tensor]


class _Call(NamedTuple):
    """The arguments of torch's function."""

    query: Tensor
    key: Tensor
    value: Tensor
    score_mod: Any
    block_mask: Any
    scale: float | None
    enable_gqa: bool
    return_lse: bool
    kernel_options: Any
    return_aux: Any


def flex_attention(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What torch's function gives: the mask of blocks says by its `mask_mod` which scores there are."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    call = _Call(**bound.arguments)
    query, key, value = call[:3]
    indices = _indices(query, key)
    mask = None if call.block_mask is None else call.block_mask.mask_mod(*indices)
    if call.score_mod is None and not call.return_lse and call.return_aux is None:
        if mask is not None:
            mask = mask.expand(-1, -1, query.shape[2], key.shape[2])
        return functional.scaled_dot_product_attention(
            query, key, value, mask, scale=call.scale, enable_gqa=call.enable_gqa
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
    scores = query @ key.transpose(-2, -1) * scale
    if call.score_mod is not None:
        scores = call.score_mod(scores, *indices)
    if mask is not None:
        scores = torch.where(mask, scores, -float("inf"))
    return _attended(call, scores, value)


def _attended(call: _Call, scores: Tensor, value: Tensor) -> Any:
    """Sums of values by the softmax of scores, zero where all are excluded; and what else is asked."""
    largest = scores.amax(-1, keepdim=True)
    empty = largest == -float("inf")
    shift = torch.where(empty, 0.0, largest).detach()
    exponents = torch.exp(scores - shift)
    total = exponents.sum(-1, keepdim=True)
    out = (exponents / torch.where(empty, 1.0, total)) @ value
    logsumexp = (torch.log(total) + shift).squeeze(-1)
    if call.return_aux is not None:
        return out, sys.modules[MODULE].AuxOutput(
            lse=logsumexp if call.return_aux.lse else None,
            max_scores=largest.squeeze(-1) if call.return_aux.max_scores else None,
        )
    return (out, logsumexp) if call.return_lse else out


def create_block_mask(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A mask that knows its `mask_mod` and sizes, as one block: which blocks are full is not asked."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    mask_mod, samples, heads, queries, keys = list(bound.arguments.values())[:5]
    count = torch.ones(samples or 1, heads or 1, 1, dtype=torch.int32)
    return sys.modules[MODULE].BlockMask.from_kv_blocks(
        count,
        torch.zeros(*count.shape, 1, dtype=torch.int32),
        BLOCK_SIZE=(queries, keys),
        mask_mod=mask_mod,
        seq_lengths=(queries, keys),
        compute_q_blocks=False,
    )


def _indices(query: Tensor, key: Tensor) -> Indices:
    """Of samples, heads, queries and keys."""
    sizes = (*query.shape[:3], key.shape[2])
    b, h, i, j = (
        torch.arange(size).reshape([-1 if d == at else 1 for d in range(4)])
        for at, size in enumerate(sizes)
    )
    return b, h, i, j


def replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By function of torch, what is called in its place; nothing where no code has imported them."""
    module: Any = sys.modules.get(MODULE)
    if module is None:
        return {}
    return {module.flex_attention: flex_attention, module.create_block_mask: create_block_mask}
