"""Rows that a boolean mask selects, as all rows with the mask: their sums and means need no size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import TraceError
from ..locate import current_user_line

IGNORED = -100
# fmt: off
ELEMENTWISE = {
    "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "mul", "__mul__", "__rmul__", "div",
    "__truediv__", "neg", "__neg__", "square", "pow", "__pow__", "abs", "exp", "log", "log1p", "sqrt",
    "float", "double", "to", "sigmoid", "tanh", "relu", "clamp", "detach", "log_softmax", "softmax",
    "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss",
}
# fmt: on
LOSSES = {"binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss"}


class Selections:
    """Masks by the tensor that stands for the rows selected by them."""

    def __init__(self) -> None:
        self.masks: dict[int, tuple[Tensor, Tensor]] = {}
        self.expressions: dict[int, tuple[Tensor, object]] = {}

    def note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Note how integers and booleans are computed, so that equal masks are known to be equal."""
        if isinstance(result, Tensor) and not result.is_floating_point():
            parts = tuple(self.expression(a) for a in (*args, *kwargs.items()))
            self.expressions[id(result)] = result, (name, parts)

    def expression(self, value: Any) -> object:
        if not isinstance(value, Tensor):
            return repr(value)
        return self.expressions.get(id(value), (value, id(value)))[1]

    def mask(self, tensor: Any) -> Tensor | None:
        pair = self.masks.get(id(tensor))
        return None if pair is None else pair[1]

    def select(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x[mask]`: the same rows, merged, with the mask that counts them."""
        rows = x.reshape(mask.numel(), *x.shape[mask.dim() :])
        self.masks[id(rows)] = rows, mask
        return rows

    def call(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call on selected rows: elementwise, a sum, a mean or a loss. Raises TraceError otherwise."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        masks = [self.mask(t) for t in tensors]
        mask = next(m for m in masks if m is not None)
        same = self.expression(mask)
        comparable = all(
            t.dim() == 0 or (m is not None and self.expression(m) == same)
            for t, m in zip(tensors, masks, strict=True)
        )
        if comparable and name == "cross_entropy":
            return self.cross_entropy(mask, args, kwargs)
        if comparable and name in LOSSES and kwargs.get("reduction", "mean") in ("mean", "sum"):
            reduction = kwargs.pop("reduction", "mean")
            losses = func(*args, **kwargs, reduction="none")
            return self.reduced(losses, mask, reduction)
        if name in ("mean", "sum") and len(args) == 1 and not kwargs:
            return self.reduced(args[0], mask, name)
        if comparable and name in ELEMENTWISE:
            result = func(*args, **kwargs)
            self.masks[id(result)] = result, mask
            return result
        raise TraceError(
            f"{current_user_line()}: {name} of rows that a mask selects: their number is not known in "
            "advance. Sums, means and losses of them are; else multiply by the mask, or use torch.where"
        )

    def reduced(self, x: Tensor, mask: Tensor, reduction: str) -> Tensor:
        """The sum or mean over the rows of the mask."""
        column = mask.reshape(-1, *(1,) * (x.dim() - 1))
        total = torch.where(column, x, 0.0).sum()
        if reduction == "sum":
            return total
        return total / (mask.sum() * (x.numel() // max(1, x.shape[0])))

    def cross_entropy(self, mask: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Labels of other rows are ignored."""
        logits, labels, *rest = args
        ignored = kwargs.get("ignore_index", IGNORED)
        labels = torch.where(mask.reshape(-1), labels, ignored)
        return functional.cross_entropy(logits, labels, *rest, **kwargs)
