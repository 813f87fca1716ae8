"""Robust aggregation of whole vectors: pairwise distances, and the mean of the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..comm.group_hierarchy import RankGroup


def distances(vectors: Tensor) -> Tensor:
    """Squared distances between all pairs of `[ranks, elements]`, in fp64; those of chunks add up."""
    wide = vectors.to(torch.float64)
    return torch.stack([(wide - one).square().sum(1) for one in wide])


def mean_of_best(vectors: Tensor, scores: Tensor, count: int) -> Tensor:
    """The mean of the `count` vectors with the highest scores; the lower rank wins a tie."""
    order = scores.sort(descending=True, stable=True).indices[:count]
    return vectors[order.sort().values].mean(0)


def zeno_scores(
    group: RankGroup, update: Tensor, loss_after: Callable[[Tensor], float], penalty: float
) -> Tensor:
    """Scores of all ranks' updates (`[size]`), the same on every rank: each judges all on data of its
    own, and the median of the judgements counts, so that judges may lie as well.

    `loss_after`: the loss after a step against an update, `[elements]`; before one, against zeros.
    """
    before = loss_after(torch.zeros_like(update))
    rows = group.all_gather(update.contiguous()).view(group.size, -1)
    scores = [zeno_score(before, loss_after(row), row, penalty) for row in rows]
    judged = group.all_gather(torch.tensor(scores, dtype=torch.float64))
    return judged.view(group.size, -1).median(0).values


def zeno_score(loss_before: float, loss_after: float, update: Tensor, penalty: float) -> float:
    """How much a step against `update` lowers the loss, less what its length costs."""
    return loss_before - loss_after - penalty * float(update.square().sum())
