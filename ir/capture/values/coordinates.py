"""Reading and writing rows at the places of a mask, without knowing how many they are.

Rows along some dimensions of a mask [s0 s1 …] are a tensor [product of their sizes, …]. A place that is
written by several rows takes their sum, of which at most one counts where it is set.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..locate import current_user_line
from ..operators.checked import OPS

EACH = (
    "the program was made for {count} rows of every sample that this mask selects, as in the batch that "
    "it was traced with"
)


class Places(NamedTuple):
    """Dimensions of a mask, in the order in which they index a tensor."""

    mask: Tensor
    dims: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(d for d in range(self.mask.dim()) if d not in self.dims)

    def expanded(self, rows: Tensor) -> Tensor:
        """Rows along `dims`, in ascending order, as rows along all dimensions of the mask."""
        inner = rows.shape[1:]
        sizes = [s if d in self.dims else 1 for d, s in enumerate(self.mask.shape)]
        wide = rows.reshape(*sizes, *inner).expand(*self.mask.shape, *inner)
        return wide.reshape(-1, *inner)


def read_rows(x: Tensor, mask: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`x[c0, c1, …]` of coordinates along `dims`: rows along these dimensions in ascending order."""
    for axis, dim in enumerate(dims):
        if x.shape[axis] != mask.shape[dim]:
            x = x.narrow(axis, 0, mask.shape[dim])
    order = sorted(range(len(dims)), key=lambda axis: dims[axis])
    if order != list(range(len(dims))):
        x = x.permute(*order, *range(len(dims), x.dim()))
    return x.reshape(prod(x.shape[: len(dims)]), *x.shape[len(dims) :]).clone()


def rows_of_each(rows: Tensor, mask: Tensor, count: int) -> Tensor:
    """The `count` rows of every sample that a mask [samples …] selects, in order: [samples, count, …].

    That they are as many is checked while the program runs.
    """
    chosen = mask.reshape(mask.shape[0], -1)
    order = torch.argsort((~chosen).to(torch.int64), dim=1, stable=True)[:, :count]
    whole = rows.reshape(*chosen.shape, -1)
    taken = whole.gather(1, order[..., None].expand(-1, -1, whole.shape[-1]))
    message = f"{current_user_line()}: {EACH.format(count=count)}"
    return OPS.checked(taken, chosen.sum(1) == count, message)


def write_rows(x: Tensor, places: Places, rows: Tensor | float, add: bool) -> Tensor:
    """x with rows along all dimensions of the mask, or a number, added or set at their places."""
    mask, dims = places
    if not isinstance(rows, Tensor) or rows.dim() == 0 or rows.shape[0] != mask.numel():
        rows = torch.as_tensor(rows, dtype=x.dtype).expand(mask.numel(), *x.shape[len(dims) :])
    rows = rows.to(x.dtype).reshape(mask.numel(), *x.shape[len(dims) :])
    column = mask.reshape(-1, *(1,) * (rows.dim() - 1))
    values = torch.where(column, rows, 0).reshape(*mask.shape, *rows.shape[1:])
    chosen = mask
    if places.others:
        values, chosen = values.sum(places.others), mask.any(places.others[0])
        for dim in places.others[1:]:
            chosen = chosen.any(dim)
    values, chosen = _in_order(values, dims), _in_order(chosen, dims)
    for axis in range(len(dims)):
        values, chosen = _padded(values, axis, x.shape[axis]), _padded(chosen, axis, x.shape[axis])
    if add:
        return x + values
    return torch.where(chosen.reshape(*chosen.shape, *(1,) * (x.dim() - len(dims))), values, x)


def _in_order(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Leading dimensions in the order of `dims`."""
    order = sorted(range(len(dims)), key=lambda axis: dims[axis])
    if order == list(range(len(dims))):
        return x
    back = [order.index(axis) for axis in range(len(dims))]
    return x.permute(*back, *range(len(dims), x.dim()))


def _padded(x: Tensor, axis: int, size: int) -> Tensor:
    """x with zeros behind along an axis."""
    if x.shape[axis] == size:
        return x
    shape = list(x.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([x, x.new_zeros(shape)], axis)
