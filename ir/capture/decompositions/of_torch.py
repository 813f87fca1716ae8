"""Operators that nobody declared, as the smaller ones that torch makes of them.

What stays is opaque: it runs whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ... import ops as _declarations  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers)
from ...model.loops import OPERATORS
from ..torch_private import OpOverload, decompositions, schema

ATEN = torch.ops.aten


def _filled(value: float) -> Callable[..., Tensor]:
    """`x.new_*(shape)` without x, which only lends its element type."""

    def make(x: Tensor, shape: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.full(shape, value, dtype=dtype or x.dtype, device=x.device)

    return make


def _new_full(
    x: Tensor, shape: list[int], value: float, *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return torch.full(shape, value, dtype=dtype or x.dtype, device=x.device)


def _diagonal_scatter(
    x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Tensor:
    """x with `source` on a diagonal: element i at row i, or below the main one at column i."""
    matrix = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = (torch.arange(n, device=x.device) for n in matrix.shape[-2:])
    length = matrix.shape[-2 if offset >= 0 else -1]
    padding = source.new_zeros((*source.shape[:-1], length - source.shape[-1]))
    padded = torch.cat([source, padding], -1)
    spread = padded.unsqueeze(-1) if offset >= 0 else padded.unsqueeze(-2)
    written = torch.where(columns - rows[:, None] == offset, spread, matrix)
    return written.movedim((-2, -1), (dim1, dim2))


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Every (columns + 1)-th element of the rows, one after the other."""
    matrix = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrix.shape[-2:]
    first = offset if offset >= 0 else -offset * columns
    count = min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns)
    last = first + max(count - 1, 0) * (columns + 1) + (count > 0)
    return matrix.flatten(-2)[..., first : last : columns + 1]


def _on_grid_of_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """x on the grid of its channel, and where it is within; torch's operator knows no float64."""
    shape = [-1 if dim == axis % x.dim() else 1 for dim in range(x.dim())]
    scale, zero_point = scale.view(shape), zero_point.view(shape)
    step = torch.round(x * scale.reciprocal()) + zero_point
    within = (step >= low) & (step <= high)
    return ((step.clamp(low, high) - zero_point) * scale).to(x.dtype), within


REPLACED: dict[OpOverload, Callable[..., Any]] = {
    ATEN.fake_quantize_per_channel_affine_cachemask.default: _on_grid_of_channel,
    ATEN.diagonal.default: _diagonal,
    ATEN.diagonal_scatter.default: _diagonal_scatter,
    ATEN.new_zeros.default: _filled(0),
    ATEN.new_ones.default: _filled(1),
    ATEN.new_empty.default: _filled(0),
    ATEN.new_full.default: _new_full,
}


@cache
def torch_decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """What to put for operators while a joint graph is recorded."""
    known = decompositions().items()
    undeclared = {
        op: f for op, f in known if str(op) not in OPERATORS and not schema(op).is_mutable
    }
    return {**undeclared, **REPLACED}
