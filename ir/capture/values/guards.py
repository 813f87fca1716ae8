"""Checks that every step makes of what the code was told while it was recorded."""

from __future__ import annotations

from torch import Tensor

from ..operators.checked import OPS
from ..torch_private import outside_modes, tree_leaves
from .known import KnownValues

MESSAGE = (
    "{line}: the program was made for the values {values} there, as the batch had them when it was "
    "traced; trace it again for others"
)


def guarded(loss: Tensor, known: KnownValues) -> Tensor:
    """The loss, with nothing added, once the values that code was told are what they were."""
    for tensor, value, line in known.guards.values():
        with outside_modes():
            values = value.tolist()
        same = tensor == _recorded(values, tensor)
        rows = same.reshape(same.shape[0], -1).all(1) if same.dim() > 1 else same
        text = MESSAGE.format(line=line, values=values)
        loss = loss + OPS.checked(tensor, rows, text).sum().to(loss.dtype) * 0
    return loss


def _recorded(values: object, like: Tensor) -> Tensor:
    """A constant of the recording."""
    assert tree_leaves(values)
    return like.new_tensor(values)
