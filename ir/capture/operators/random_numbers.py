"""Uniform random numbers by an element's place in the whole tensor; all other draws are made of them.

Element i of a tensor depends on the key, the operator's stream and i alone, so that a shard computes
its part of the same numbers under every plan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .elementary import random_bits, register

# bits of a number in the open interval (0, 1): (k + 1/2) / 2^bits is exact
BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


def uniform(
    key: Tensor, stream_id: int, index: list[int], shape: list[int], dtype: torch.dtype
) -> Tensor:
    """Numbers in the open interval (0, 1): neither 0, whose logarithm is none, nor 1.

    `index`: shard offsets of the elements, in the order of a tensor of `shape`.
    """
    bits = BITS[dtype]
    drawn = random_bits(key, stream_id, index) >> (53 - bits)
    return ((drawn.double() + 0.5) * 0.5**bits).to(dtype).reshape(shape)


def _uniform_fake(
    key: Tensor, stream_id: int, index: list[int], shape: list[int], dtype: torch.dtype
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=key.device)


register(
    "uniform(Tensor key, int stream_id, int[] index, int[] shape, ScalarType dtype) -> Tensor",
    uniform,
    _uniform_fake,
)
