"""Losses whose sizes depend on values, or that torch has as one operator, in terms of smaller ones."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import TraceError
from ..locate import current_user_line
from ..operators.ctc import OPS
from .selected import Selections

CTC = inspect.signature(functional.ctc_loss)
MARGIN = inspect.signature(functional.multi_margin_loss)
REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


def ctc_loss(selections: Selections, args: Any, kwargs: Any) -> Tensor:
    """The loss of log-probabilities [t b c] and labels [b s], or labels that a mask [b s] selects.

    Raises TraceError for other labels that are one list.
    """
    given = CTC.bind(*args, **kwargs)
    given.apply_defaults()
    x, labels, frames, lengths, blank, reduction, zero_infinity = given.args
    mask = selections.mask(labels)
    if mask is not None:
        labels = _first_of_row(labels.reshape(mask.shape), mask)
    if x.dim() != 3 or labels.dim() != 2:
        raise TraceError(
            f"{current_user_line()}: ctc_loss of labels that are one list: which sample they belong to "
            "depends on values. Give labels of shape [samples, most labels]"
        )
    frames, lengths = (torch.as_tensor(n).to(torch.int64) for n in (frames, lengths))
    losses = OPS.ctc(x, labels, frames, lengths, blank, zero_infinity)
    reduction = REDUCTIONS.get(reduction, reduction)
    if reduction == "mean":
        return (losses / lengths.clamp(min=1).to(losses.dtype)).mean()
    return losses.sum() if reduction == "sum" else losses


def multi_margin_loss(args: Any, kwargs: Any) -> Tensor:
    """The mean over classes [b c] of what is short of a margin to the label's score, to a power."""
    given = MARGIN.bind(*args, **kwargs)
    given.apply_defaults()
    x, labels, power, margin, weight, size_average, reduce, reduction = given.args
    column = labels.reshape(-1, 1)
    short = (margin - x.gather(1, column) + x).clamp(min=0) ** power
    if weight is not None:
        short = short * weight[labels].reshape(-1, 1)
    others = torch.arange(x.shape[1], device=x.device) != column
    losses = torch.where(others, short, 0.0).sum(1) / x.shape[1]
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return losses if reduction == "none" else getattr(losses, reduction)()


def gaussian_nll_loss(
    x: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor | None:
    """Negative logarithm of normal densities, without the check that variances are positive."""
    if not isinstance(var, Tensor):
        return None
    var = var.unsqueeze(-1) if x.shape[:-1] == var.shape else var.clone()
    with torch.no_grad():
        var.clamp_(min=eps)
    losses = 0.5 * (torch.log(var) + (x - target) ** 2 / var)
    losses = losses + 0.5 * math.log(2 * math.pi) if full else losses
    return losses if reduction == "none" else getattr(losses, reduction)()


def _first_of_row(labels: Tensor, mask: Tensor) -> Tensor:
    """Labels of every row in their order, those that the mask selects first."""
    order = torch.argsort((~mask).to(torch.int64), dim=1, stable=True)
    return labels.gather(1, order)
