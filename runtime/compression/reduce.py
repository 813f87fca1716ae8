"""Reductions over ranks, coordinate by coordinate: sums in rank order, robust rules by networks.

Sorting goes through a fixed list of compare-and-swap pairs, so that every backend gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.compression.stage import Reduce


def reduce(stage: Reduce, values: Tensor) -> Tensor:
    """`[ranks, …]` to `[…]`."""
    ranks = values.shape[0]
    if stage.rule in ("sum", "mean"):
        total = _sum(list(values))
        return total if stage.rule == "sum" else total * (1 / ranks)
    ordered = sort(list(values), list(values))
    if stage.rule == "median":
        low, high = ordered[(ranks - 1) // 2], ordered[ranks // 2]
        return (low + high) * 0.5
    middle = _mean(ordered[stage.drop : ranks - stage.drop])
    if stage.rule == "trimmed_mean":
        return middle
    distances = [(value - middle).abs() for value in ordered]
    return _mean(sort(distances, ordered)[: ranks - stage.drop])


def sort(keys: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """`values` by ascending `keys`, element by element."""
    keys, values = list(keys), list(values)
    for low, high in network(len(values)):
        swap = keys[low] > keys[high]
        for row in (keys, values):
            row[low], row[high] = (
                torch.where(swap, row[high], row[low]),
                torch.where(swap, row[low], row[high]),
            )
    return values


def network(size: int) -> list[tuple[int, int]]:
    """Bubble sort: pairs to compare, in order."""
    return [(i, i + 1) for last in range(size - 1, 0, -1) for i in range(last)]


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _mean(values: list[Tensor]) -> Tensor:
    return _sum(values) * (1 / len(values))
