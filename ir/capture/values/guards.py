"""Checks that every step makes of what the code was told while it was recorded."""

from __future__ import annotations

from torch import Tensor

from ..operators.checked import OPS
from ..torch_private import outside_modes, tree_leaves
from .known import KnownValues
from .numbers import UnknownNumber

MESSAGE = (
    "{line}: the program was made for the values {values} there, as the batch or a buffer had "
    "them when it was traced; trace it again for others"
)
CHANGED = (
    "{line}: the number is that of buffer {buffer}, which the step changes: a compiled program would "
    "keep the first one. Keep it a tensor (x.index_select, torch.where), or count outside the model "
    "and pass it in the batch"
)


def guarded(loss: Tensor, known: KnownValues) -> Tensor:
    """The loss, with nothing added, once the values that code was told are what they were."""
    for tensor, value, line in known.guards.values():
        for buffer in known.buffers.get(id(tensor), frozenset()) & known.changed:
            raise UnknownNumber(CHANGED.format(line=line, buffer=buffer), known.changed)
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
