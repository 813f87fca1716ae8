"""Operators that torch has no float64 kernel of, by others that it has, for modules in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch_private import GROUPED_MM


def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`aten._grouped_mm`: products of groups that end at `offs` along the rows of `a` [m k] (`b` is
    [g k n]), the columns of `b` [k n] (`a` is [g m k]), or what both sum over (result [g m n])."""
    assert bias is None
    if a.dim() == b.dim() == 3:
        return torch.bmm(a, b)
    assert offs is not None
    ends = offs.tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    if a.dim() == 2 and b.dim() == 2:
        return torch.stack([a[:, i:j] @ b[i:j] for i, j in spans])
    if a.dim() == 2:
        rows = [a[i:j] @ matrix for (i, j), matrix in zip(spans, b, strict=True)]
        return _padded(torch.cat(rows), 0, a.shape[0])
    columns = [matrix @ b[:, i:j] for (i, j), matrix in zip(spans, a, strict=True)]
    return _padded(torch.cat(columns, 1), 1, b.shape[1])


def _padded(x: Tensor, dim: int, size: int) -> Tensor:
    """`x` with zeros up to `size` along a dimension: elements beyond the last group are of none."""
    shape = list(x.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """`aten.fake_quantize_per_channel_affine_cachemask`, channel by channel: x on the grid, and where
    it is within. Torch takes scales of float32 alone, in modules of float64, too."""
    rows = zip(x.unbind(axis), scale, zero_point, strict=True)
    steps = torch.stack([torch.round(row * (1 / s)) + z for row, s, z in rows], axis)
    grids = zip(steps.clamp(low, high).unbind(axis), scale, zero_point, strict=True)
    return torch.stack([(row - z) * s for row, s, z in grids], axis), (steps >= low) & (
        steps <= high
    )


WIDE: dict[Any, Callable[..., Any]] = {
    GROUPED_MM: grouped_mm,
    torch.ops.aten.fake_quantize_per_channel_affine_cachemask.default: fake_quantize,
}


def wide(operator: Any, args: tuple[Any, ...]) -> Any:
    """What computes an operator on these arguments: itself, except on float64 without a kernel."""
    substitute = WIDE.get(operator)
    is_wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
    return substitute if substitute is not None and is_wide else operator
