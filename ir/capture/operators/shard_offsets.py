"""Where a shard lies in the whole: flat triples (size, stride, start), one per factor.

A factor of `size` elements starts at `start` of its own whole, whose neighbours lie `stride` apart
in the whole tensor. No triples stand for the whole.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def whole_index(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Triples of a whole tensor: one per dimension, start 0."""
    triples: list[int] = []
    for dim, size in enumerate(shape):
        triples += (size, prod(shape[dim + 1 :]), 0)
    return tuple(triples)


def positions(index: list[int], device: torch.device, first: Tensor | int = 0) -> Tensor:
    """Position in the whole of every element of a shard, one dimension per factor.

    A start of -1 stands for `first`.
    """
    found = torch.zeros((), dtype=torch.int64, device=device)
    for size, stride, start in zip(index[0::3], index[1::3], index[2::3], strict=True):
        digit = torch.arange(size, dtype=torch.int64, device=device)
        found = found.unsqueeze(-1) + (digit + (first if start == -1 else start)) * stride
    return found


def line(index: list[int], size: int, device: torch.device) -> Tensor:
    """Positions along one dimension of `size` local elements."""
    if not index:
        return torch.arange(size, device=device)
    return positions(index, device).reshape(-1)


def inside(whole: Tensor, index: list[int]) -> tuple[Tensor, Tensor]:
    """Positions in the whole as positions in a shard, and which of them lie there.

    Those that lie elsewhere become 0.
    """
    local, here = torch.zeros_like(whole), torch.ones_like(whole, dtype=torch.bool)
    rest = whole
    for size, stride, start in zip(index[0::3], index[1::3], index[2::3], strict=True):
        digit = rest // stride - start
        rest = rest % stride
        here = here & (digit >= 0) & (digit < size)
        local = local * size + digit
    return torch.where(here, local, 0), here
