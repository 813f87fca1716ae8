"""Evaluate expressions over positions at index points.

The value at (i, j, ...) of an operator is computed from its operands' values there, so a mask of
8192 x 8192 (or of a million squared) is never materialised.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...model.model import Argument, Op, Ref
from ..graph import FlatGraph
from ..literals import DTYPES, decode
from ..resolve import resolve
from ..torch_private import schema

EXACT_POINTS = 1 << 26
BLOCK_POINTS = 1 << 22
# Elementwise operators that torch does not tag as pointwise.
# fmt: off
POINTWISE = (
    "_to_copy", "where", "masked_fill", "clone", "alias", "detach", "lift_fresh_copy",
    "__and__", "__or__", "__xor__",
)
# fmt: on
Index = tuple[Tensor, ...]


class NotConstant(Exception):
    """The value depends on the batch or on parameters, or on an operator without a point rule."""


def grid_shape(dim: int, rank: int) -> tuple[int, ...]:
    """The shape of an index along `dim` that broadcasts over `rank` dimensions."""
    return tuple(-1 if d == dim else 1 for d in range(rank))


class PointEvaluator:
    """Values of an expression at index points, cached per (value, index)."""

    def __init__(self, graph: FlatGraph, made_by: dict[int, Op]) -> None:
        self.graph, self.made_by = graph, made_by
        self.cache: dict[Any, Tensor] = {}

    def at(self, value: int, index: Index) -> Tensor:
        key = (value, *(id(i) for i in index))
        if key not in self.cache:
            op = self.made_by.get(value)
            point = self.constant(value, index) if op is None else self.evaluate(op, value, index)
            # ids stay unique while the index tensors live
            self.cache[key] = point
            self.cache[("index", *key)] = index  # type: ignore[assignment]
        return self.cache[key]

    def shape(self, value: int) -> tuple[int, ...]:
        return self.graph.types[value].shape

    def constant(self, value: int, index: Index) -> Tensor:
        parameter = self.graph.parameters.get(value)
        if parameter is None or parameter.values is None:
            raise NotConstant
        full = torch.tensor(parameter.values, dtype=DTYPES[parameter.type.dtype])
        full = full.reshape(parameter.type.shape)
        return full[index] if index else full

    def materialized(self, op: Op, value: int) -> Tensor:
        """The full result of an operator without a point rule.

        Raises NotConstant where it is random or too large.
        """
        key = ("full", value)
        sizes = [prod(self.shape(v)) for v in (value, *op.operands())]
        target = resolve(op.target)
        if len(op.results) != 1 or max(sizes) > BLOCK_POINTS or _is_random(target):
            raise NotConstant
        if key not in self.cache:

            def operand(v: int) -> Tensor:
                return self.everywhere(v).expand(self.shape(v))

            args = [decode(a, operand) for a in op.args]
            kwargs = {k: decode(a, operand) for k, a in op.kwargs.items()}
            self.cache[key] = target(*args, **kwargs)
        return self.cache[key]

    def everywhere(self, value: int) -> Tensor:
        """A value at all points; dimensions along which it is constant have size 1."""
        shape = self.shape(value)
        grid = (torch.arange(n).reshape(grid_shape(d, len(shape))) for d, n in enumerate(shape))
        return self.at(value, tuple(grid))

    def evaluate(self, op: Op, value: int, index: Index) -> Tensor:
        name = op.target.split(".")[1]
        if name in POINT_RULES:
            return POINT_RULES[name](self, op, index)
        target = resolve(op.target)
        if torch.Tag.pointwise not in getattr(target, "tags", ()) and name not in POINTWISE:
            return self.materialized(op, value)[index]

        def operand(v: int) -> Tensor:
            return self.at(v, _aligned(index, self.shape(v)))

        args = [decode(a, operand) for a in op.args]
        return target(*args, **{k: decode(a, operand) for k, a in op.kwargs.items()})


def _is_random(target: Any) -> bool:
    """Whether an operator's values are random or uninitialised."""
    tags = getattr(target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or "empty" in str(target)


def _broadcast_index(index: Tensor, size: int) -> Tensor:
    """The index into a dimension of `size`: 0 where it is broadcast."""
    return index if size != 1 else torch.zeros((1,) * index.dim(), dtype=torch.int64)


def _aligned(index: Index, shape: tuple[int, ...]) -> Index:
    """The index into a tensor of `shape` under broadcasting, aligned on the right."""
    last = index[len(index) - len(shape) :]
    return tuple(_broadcast_index(i, n) for i, n in zip(last, shape, strict=True))


def _source(op: Op) -> int:
    argument: Argument = op.args[0]
    assert isinstance(argument, Ref)
    return argument.value


def _integer(op: Op, position: int, absent: int) -> int:
    argument = op.args[position] if position < len(op.args) else absent
    assert isinstance(argument, int)
    return argument


def _arange(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    start, step = 0.0, 1.0
    numbers = [a for a in op.args if isinstance(a, int | float)]
    if len(numbers) > 1:
        start = numbers[0]
    if len(numbers) > 2:
        step = numbers[2]
    type_ = points.graph.types[op.results[0]]
    integral = float(start).is_integer() and float(step).is_integer()
    values = index[0] * int(step) + int(start) if integral else index[0] * step + start
    return values.to(DTYPES[type_.dtype])


def _filled(constant: float | None, place: int) -> Callable[[PointEvaluator, Op, Index], Tensor]:
    def evaluate(points: PointEvaluator, op: Op, index: Index) -> Tensor:
        fill = constant if constant is not None else op.args[place]
        if isinstance(fill, Ref):
            raise NotConstant
        type_ = points.graph.types[op.results[0]]
        number = decode(fill, lambda _: None)
        return torch.full((1,) * max(1, len(index)), number, dtype=DTYPES[type_.dtype])

    return evaluate


def _viewed(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    """Same elements in another shape; dimensions of size 1 may be added or removed."""
    source = _source(op)
    before, after = points.shape(source), points.shape(op.results[0])
    nontrivial = [i for i, n in zip(index, after, strict=True) if n != 1]
    if [n for n in before if n != 1] == [n for n in after if n != 1]:
        zero = torch.zeros((1,) * (index[0].dim() if index else 0), dtype=torch.int64)
        queue = iter(nontrivial)
        return points.at(source, tuple(zero if n == 1 else next(queue) for n in before))
    flat = torch.zeros((), dtype=torch.int64)
    for dim, i in enumerate(index):
        flat = flat + i * prod(after[dim + 1 :])
    return points.at(
        source, tuple((flat // prod(before[d + 1 :])) % n for d, n in enumerate(before))
    )


def _expanded(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    source = _source(op)
    return points.at(source, _aligned(index, points.shape(source)))


def _transposed(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    rank = len(index)
    one, other = (_integer(op, p, 0) % rank for p in (1, 2)) if len(op.args) > 2 else (0, 1)
    order = list(index)
    order[one], order[other] = order[other], order[one]
    return points.at(_source(op), tuple(order))


def _permuted(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    order = op.args[1]
    assert isinstance(order, tuple)
    dims = [int(d) % len(index) for d in order]  # type: ignore[arg-type]
    return points.at(_source(op), tuple(index[dims.index(d)] for d in range(len(index))))


def _sliced(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    dim, start, step = (
        _integer(op, 1, 0),
        op.args[2] if len(op.args) > 2 else 0,
        _integer(op, 4, 1),
    )
    size = points.shape(_source(op))[dim]
    first = min(max(start + size if start < 0 else start, 0), size) if isinstance(start, int) else 0
    moved = list(index)
    moved[dim] = index[dim] * step + first
    return points.at(_source(op), tuple(moved))


def _selected(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    shape = points.shape(_source(op))
    dim, place = _integer(op, 1, 0) % len(shape), _integer(op, 2, 0)
    at = torch.full((1,) * (index[0].dim() if index else 0), place % shape[dim])
    return points.at(_source(op), (*index[:dim], at, *index[dim:]))


def _joined(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    """Evaluate each operand of a concatenation where the index is inside it."""
    operands = op.args[0]
    assert isinstance(operands, tuple)
    dim, result, start = _integer(op, 1, 0) % len(index), None, 0
    for operand in operands:
        assert isinstance(operand, Ref)
        size = points.shape(operand.value)[dim]
        place = index[dim] - start
        moved = (*index[:dim], place.clamp(0, size - 1), *index[dim + 1 :])
        values = points.at(operand.value, moved)
        result = values if result is None else torch.where(place >= 0, values, result)
        start += size
    assert result is not None
    return result


def _looked_up(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    """`x[i, j, …]` with an index for every dimension of x."""
    indices, source = op.args[1], _source(op)
    if not isinstance(indices, tuple) or len(indices) != len(points.shape(source)):
        raise NotConstant
    places = []
    for place, size in zip(indices, points.shape(source), strict=True):
        if not isinstance(place, Ref) or points.graph.types[place.value].dtype == "bool":
            raise NotConstant
        places.append(points.at(place.value, _aligned(index, points.shape(place.value))) % size)
    return points.at(source, tuple(places))


def _along_dim(points: PointEvaluator, op: Op, index: Index) -> Tensor:
    """An operator along one dimension; of equal rows, one is evaluated."""
    key = ("full", op.results[0])
    if key not in points.cache:
        target: Any = resolve(op.target)
        declared = {a.name: a for a in schema(target).arguments}
        arguments = dict(zip(declared, op.args, strict=False)) | op.kwargs
        dim = arguments.get("dim", declared["dim"].default_value)
        assert isinstance(dim, int)
        dim %= len(index)

        def operand(v: int) -> Tensor:
            sizes = [n if d == dim else -1 for d, n in enumerate(points.shape(v))]
            return points.everywhere(v).expand(sizes)

        args = [decode(a, operand) for a in op.args]
        result = target(*args, **{k: decode(a, operand) for k, a in op.kwargs.items()})
        if result.numel() > EXACT_POINTS:
            raise NotConstant
        points.cache[key] = result
    result = points.cache[key]
    return result[tuple(_broadcast_index(i, n) for i, n in zip(index, result.shape, strict=True))]


def _triangle(upper: bool) -> Callable[[PointEvaluator, Op, Index], Tensor]:
    def evaluate(points: PointEvaluator, op: Op, index: Index) -> Tensor:
        diagonal, gap = _integer(op, 1, 0), index[-1] - index[-2]
        keep = gap >= diagonal if upper else gap <= diagonal
        values = points.at(_source(op), index)
        return torch.where(keep, values, torch.zeros((), dtype=values.dtype))

    return evaluate


# fmt: off
POINT_RULES: dict[str, Callable[[PointEvaluator, Op, Index], Tensor]] = {
    "arange": _arange,
    "full": _filled(None, 1), "full_like": _filled(None, 1), "new_full": _filled(None, 2),
    "scalar_tensor": _filled(None, 0),
    "zeros": _filled(0, 0), "zeros_like": _filled(0, 0), "new_zeros": _filled(0, 0),
    "ones": _filled(1, 0), "ones_like": _filled(1, 0), "new_ones": _filled(1, 0),
    "view": _viewed, "reshape": _viewed, "unsqueeze": _viewed, "squeeze": _viewed,
    "expand": _expanded, "transpose": _transposed, "t": _transposed, "permute": _permuted,
    "cat": _joined, "index": _looked_up,
    "slice": _sliced, "select": _selected, "triu": _triangle(True), "tril": _triangle(False),
    "cumsum": _along_dim, "diff": _along_dim,
}
# fmt: on
