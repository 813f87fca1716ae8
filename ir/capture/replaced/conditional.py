"""`torch.cond` as both sides and a choice: a program has no branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import tree_flatten, tree_unflatten


def conditional(
    original: Callable[..., Any],
    pred: Tensor | bool,
    true_fn: Callable[..., Any],
    false_fn: Callable[..., Any],
    operands: Sequence[Any] = (),
) -> Any:
    """What `true_fn` gives where `pred` is true, else what `false_fn` gives.

    Raises TraceError where the results have different shapes.
    """
    if not isinstance(pred, Tensor):
        return (true_fn if pred else false_fn)(*operands)
    (one, structure), (other, _) = (tree_flatten(f(*operands)) for f in (true_fn, false_fn))
    if [x.shape for x in one] != [x.shape for x in other]:
        raise TraceError(
            f"{current_user_line()}: the sides of torch.cond give results of different shapes"
        )
    chosen = [torch.where(pred, x, y) for x, y in zip(one, other, strict=True)]
    return tree_unflatten(chosen, structure)


def replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    return {torch.cond: conditional}
