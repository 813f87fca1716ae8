"""`nn.AdaptiveLogSoftmaxWithLoss`: in torch a cluster takes the rows whose labels are its own.

How many these are is not known in advance: here every cluster takes all rows, and those of others count
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import AdaptiveLogSoftmaxWithLoss as AdaptiveSoftmax
from torch.nn import functional


def adaptive_softmax(
    original: Callable[..., Any], module: AdaptiveSoftmax, x: Tensor, labels: Tensor
) -> Any:
    """What the module gives: log-probabilities [n] of labels [n], and minus their mean; x: [n d]."""
    if labels.dim() != 1:
        return original(module, x, labels)
    logs = torch.zeros_like(labels, dtype=x.dtype)
    place = labels
    for number, (first, end) in enumerate(pairwise(module.cutoffs)):
        inside = (labels >= first) & (labels < end)
        of_cluster = functional.log_softmax(module.tail[number](x), 1)
        logs = logs + torch.where(inside, _picked(of_cluster, inside, labels - first), 0)
        place = torch.where(inside, module.shortlist_size + number, place)
    logs = logs + _picked(functional.log_softmax(module.head(x), 1), place >= 0, place)
    return Output(logs, -logs.mean())


def _picked(logs: Tensor, inside: Tensor, place: Tensor) -> Tensor:
    return logs.gather(1, torch.where(inside, place, 0)[:, None])[:, 0]


Output: Any = AdaptiveSoftmax.forward.__globals__["_ASMoutput"]
