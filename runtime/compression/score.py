"""Robust aggregation of whole vectors: pairwise distances, and the mean of the best."""

from __future__ import annotations

import torch
from torch import Tensor


def distances(vectors: Tensor) -> Tensor:
    """Squared distances between all pairs of `[ranks, elements]`, in fp64; those of chunks add up."""
    wide = vectors.to(torch.float64)
    return torch.stack([(wide - one).square().sum(1) for one in wide])


def mean_of_best(vectors: Tensor, scores: Tensor, count: int) -> Tensor:
    """The mean of the `count` vectors with the highest scores; the lower rank wins a tie."""
    order = scores.sort(descending=True, stable=True).indices[:count]
    return vectors[order.sort().values].mean(0)


def zeno_score(loss_before: float, loss_after: float, update: Tensor, penalty: float) -> float:
    """How much a step against `update` lowers the loss, less what its length costs."""
    return loss_before - loss_after - penalty * float(update.square().sum())
