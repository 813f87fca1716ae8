"""What depends on positions alone: masks are always true, causal, or other; positions have a greatest.

Such a value is an expression over `arange` and constants, which `position_points` evaluates block by
block, or at a sample of points where the mask is huge.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from ...model.model import Op
from ..graph import FlatGraph
from .position_points import (
    BLOCK_POINTS,
    EXACT_POINTS,
    Index,
    NotConstant,
    PointEvaluator,
    grid_shape,
)

SAMPLES = 1 << 16
MASKED = -1e30
MaskKind = Literal["all", "causal", "other"]


class PositionAnalysis:
    def __init__(self, graph: FlatGraph, made_by: dict[int, Op]) -> None:
        self.graph, self.made_by = graph, made_by
        self.kinds: dict[int, MaskKind] = {}
        self.depends: dict[int, bool] = {}

    def constant(self, value: int) -> bool | None:
        """True if the boolean value is true everywhere, None if that is unknown."""
        if self.graph.types[value].dtype != "bool" or not self.positional(value):
            return None
        return True if self.kind(value) == "all" else None

    def positional(self, value: int) -> bool:
        """Whether a value depends on constants alone."""
        if value not in self.depends:
            op = self.made_by.get(value)
            parameter = self.graph.parameters.get(value)
            if op is None:
                self.depends[value] = parameter is not None and parameter.kind == "constant"
            else:
                self.depends[value] = all(self.positional(v) for v in op.operands())
        return self.depends[value]

    def kind(self, value: int) -> MaskKind:
        """The kind of an attention mask: `all` attend, `causal`, or `other`."""
        if value not in self.kinds:
            self.kinds[value] = "other"
            if self.positional(value) and self.graph.types[value].elements:
                try:
                    self.kinds[value] = self.compare(value)
                except NotConstant:
                    pass
        return self.kinds[value]

    def greatest(self, value: int) -> int | None:
        """The greatest of positions that depend on nothing but their places, else None."""
        shape = self.graph.types[value].shape
        if not self.positional(value) or not 0 < prod(shape) <= EXACT_POINTS:
            return None
        try:
            evaluator = PointEvaluator(self.graph, self.made_by)
            return int(max(evaluator.at(value, index).max() for index in _blocks(shape)))
        except NotConstant:
            return None

    def compare(self, value: int) -> MaskKind:
        shape = self.graph.types[value].shape
        possible: set[MaskKind] = {"all", "causal"} if len(shape) >= 2 else {"all"}
        for index in _points(shape):
            allowed = _allowed(PointEvaluator(self.graph, self.made_by).at(value, index))
            if "all" in possible and not bool(allowed.all()):
                possible.discard("all")
            if "causal" in possible and not _equal(allowed, index[-1] <= index[-2]):
                possible.discard("causal")
            if not possible:
                return "other"
        # with one row or column both may hold; no mask is the simpler one
        return "all" if "all" in possible else "causal"


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*torch.broadcast_tensors(one, other))


def _allowed(values: Tensor) -> Tensor:
    """Positions that may attend: true in a boolean mask, zero in an additive one.

    Raises NotConstant for values that are no mask.
    """
    if values.dtype == torch.bool:
        return values
    allowed = values == 0
    if not bool((allowed | (values <= MASKED)).all()):
        raise NotConstant
    return allowed


def _points(shape: tuple[int, ...]) -> list[Index] | Any:
    """Index tensors that broadcast: all points in blocks of rows, or a sample of a huge mask."""
    if prod(shape) > EXACT_POINTS:
        return _sampled(shape)
    return _blocks(shape)


def _blocks(shape: tuple[int, ...]) -> Any:
    rank = len(shape)
    rows = shape[-2] if rank >= 2 else 1
    height = max(1, BLOCK_POINTS // max(1, shape[-1] if rank else 1))
    for start in range(0, rows, height):
        index = []
        for dim, size in enumerate(shape):
            first, last = (start, min(start + height, rows)) if dim == rank - 2 else (0, size)
            index.append(torch.arange(first, last).reshape(grid_shape(dim, rank)))
        yield tuple(index)


def _sampled(shape: tuple[int, ...]) -> Any:
    """Diagonals and their neighbours, first and last rows and columns, random points."""
    *outer, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    row, column = torch.arange(rows), torch.arange(columns)
    picks = [(row, (row + shift).clamp(0, columns - 1)) for shift in range(-2, 3)]
    picks += [(torch.full_like(column, r), column) for r in (0, rows - 1)]
    picks += [(row, torch.full_like(row, c)) for c in (0, columns - 1)]
    draw = [torch.randint(n, (SAMPLES,), generator=generator) for n in (rows, columns)]
    for i, j in [*picks, (draw[0], draw[1])]:
        rest = tuple(torch.randint(n, i.shape, generator=generator) for n in outer)
        yield (*rest, i, j)
