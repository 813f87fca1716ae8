"""The offsets of a shard in the full tensor: flat triples (size, stride, start), one per factor.

A shard has `size` elements of the factor, from `start` on; neighbours lie `stride` elements apart
in the full tensor. No triples stand for the full tensor.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def full_index(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Triples of an unsharded tensor: one per dimension, start 0."""
    triples: list[int] = []
    for dim, size in enumerate(shape):
        triples += (size, prod(shape[dim + 1 :]), 0)
    return tuple(triples)


def positions(index: list[int], device: torch.device, first: Tensor | int = 0) -> Tensor:
    """Flat position in the full tensor of every element of a shard, one dimension per factor.

    A start of -1 stands for `first`.
    """
    position = torch.zeros((), dtype=torch.int64, device=device)
    for size, stride, start in zip(index[0::3], index[1::3], index[2::3], strict=True):
        digit = torch.arange(size, dtype=torch.int64, device=device)
        position = position.unsqueeze(-1) + (digit + (first if start == -1 else start)) * stride
    return position


def shard_positions(number: Tensor, index: list[int], first: Tensor | int = 0) -> Tensor:
    """Positions in the full tensor of elements by their number in a shard; see `positions`."""
    position, rest = torch.zeros_like(number), number
    triples = list(zip(index[0::3], index[1::3], index[2::3], strict=True))
    for size, stride, start in reversed(triples[1:]):
        position = position + (rest % size + (first if start == -1 else start)) * stride
        rest = rest // size
    for _, stride, start in triples[:1]:
        position = position + (rest + (first if start == -1 else start)) * stride
    return position


def merged_factors(index: list[int], first: int = 0) -> list[int]:
    """The same shard with the fewest triples: neighbours of which the inner one is whole are one."""
    merged: list[tuple[int, int, int]] = []
    for size, stride, start in zip(index[0::3], index[1::3], index[2::3], strict=True):
        start = first if start == -1 else start
        if merged and start == 0 and merged[-1][1] == size * stride:
            outer, _, begin = merged.pop()
            size, start = outer * size, begin * size
        merged.append((size, stride, start))
    return [number for triple in merged for number in triple]


def line_positions(index: list[int], size: int, device: torch.device) -> Tensor:
    """Positions along one dimension of `size` local elements."""
    if not index:
        return torch.arange(size, device=device)
    return positions(index, device).reshape(-1)


def to_local_positions(position: Tensor, index: list[int]) -> tuple[Tensor, Tensor]:
    """Convert positions in the full tensor to positions in a shard, and a mask of those inside.

    Positions outside the shard become 0.
    """
    local, here = torch.zeros_like(position), torch.ones_like(position, dtype=torch.bool)
    rest = position
    for size, stride, start in zip(index[0::3], index[1::3], index[2::3], strict=True):
        digit = rest // stride - start
        rest = rest % stride
        here = here & (digit >= 0) & (digit < size)
        local = local * size + digit
    return torch.where(here, local, 0), here
