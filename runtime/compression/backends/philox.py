"""Philox 4x32-10: random numbers that depend on a counter alone, the same in every backend.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(seed: int, counter: Tensor, step: int) -> Tensor:
    """`[4, *counter.shape]`: four words (int64 of 32 bits) for each `counter` (int64), with `step` as
    the counter's second word."""
    key = [seed & MASK, seed >> 32 & MASK]
    words = [counter & MASK, torch.full_like(counter, step & MASK)]
    words += [torch.zeros_like(counter), torch.zeros_like(counter)]
    for _ in range(ROUNDS):
        high0, low0 = _product(words[0], MULTIPLIERS[0])
        high1, low1 = _product(words[2], MULTIPLIERS[1])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [(k + w) & MASK for k, w in zip(key, WEYL, strict=True)]
    return torch.stack(words)


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product that may wrap around in int64."""
    product = word * multiplier
    return product >> 32 & MASK, product & MASK


def uniform(seed: int, tiles: int, tile: int, step: int, device: torch.device) -> Tensor:
    """`[tiles, tile]` in [0, 1), steps of 2^-24: word r of counter q is element r * tile / 4 + q."""
    quarter = tile // 4
    counter = torch.arange(tiles * quarter, device=device)
    words = philox(seed, counter, step).view(4, tiles, quarter)
    return (words >> 8).to(torch.float32).permute(1, 0, 2).reshape(tiles, tile) * 2.0**-24
