"""Bags of embeddings as look-ups and sums, of which every sample has its own."""

from __future__ import annotations

from typing import NamedTuple

from ...model.model import Op, Ref
from ...model.tensor import TensorType
from ..graph import arguments
from ..passes.rewrite import ResultValues, Rewriter
from .decompose import decomposition

SUM, MEAN, MAX = 0, 1, 2


class _Bag(NamedTuple):
    """Rows of a table that are looked up: by `indices`, weighed by `weights`, without `padding`;
    `sparse`: the table's gradient is of the rows that were read."""

    table: Ref
    indices: int
    scaled: bool
    sparse: bool
    mode: int
    weights: int | None
    padding: int


def _bag(rewriter: Rewriter, op: Op) -> _Bag | None:
    defaults = (None, None, None, False, SUM, False, None, False, None)
    table, indices, _, scaled, mode, sparse, weights, _, padding = arguments(op, *defaults)
    if not isinstance(table, Ref) or not isinstance(indices, Ref) or not isinstance(mode, int):
        return None
    rows = rewriter.types[table.value].shape[0]
    skipped = padding % rows if isinstance(padding, int) else -1
    weighed = weights.value if isinstance(weights, Ref) else None
    return _Bag(table, indices.value, bool(scaled), bool(sparse), mode, weighed, skipped)


@decomposition("aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def embedding_bag(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Bags of one length as rows of a matrix, others by the bag that every index is in."""
    bag, offsets = _bag(rewriter, op), op.args[2]
    if bag is None or not isinstance(offsets, Ref):
        return None
    length = _length(rewriter, offsets.value, bag)
    result = rewriter.types[op.results[0]]
    if length is not None and result.shape[0] * length == rewriter.types[bag.indices].shape[0]:
        return (_equal(rewriter, bag, length, result), -1, -1, -1)
    if bag.mode == MAX:
        return None
    return (_unequal(rewriter, bag, offsets, result), -1, -1, -1)


def _length(rewriter: Rewriter, offsets: int, bag: _Bag) -> int | None:
    """The length of all bags, where offsets count it."""
    made = rewriter.made_by.get(offsets)
    if made is None or made.target != "aten.arange.start_step":
        return None
    first, last, step = arguments(made, 0, 0, 1)[:3]
    full = rewriter.types[bag.indices].shape == (last,)
    return step if first == 0 and full and isinstance(step, int) else None


def _rows(rewriter: Rewriter, bag: _Bag, shape: tuple[int, ...]) -> tuple[Ref, Ref]:
    """Weighed rows of the table, zero where they are padding, and which are not padding."""
    type_ = rewriter.types[bag.table.value]
    kind = TensorType((*shape, type_.shape[1]), type_.dtype)
    places = Ref(rewriter.reshaped(bag.indices, shape))
    args = (bag.table, places, bag.padding, bag.scaled, bag.sparse)
    rows = rewriter.make("embedding.default", kind, *args)
    present = rewriter.make("ne.Scalar", TensorType(shape, "bool"), places, bag.padding)
    if bag.weights is not None:
        weights = Ref(rewriter.reshaped(bag.weights, (*shape, 1)))
        rows = rewriter.make("mul.Tensor", kind, rows, weights)
    if bag.padding >= 0:
        column = Ref(rewriter.reshaped(present.value, (*shape, 1)))
        other = "-inf" if bag.mode == MAX else None
        rows = rewriter.make(
            "where.ScalarOther", kind, column, rows, f"float:{other}" if other else 0.0
        )
    return rows, present


def _equal(rewriter: Rewriter, bag: _Bag, length: int, result: TensorType) -> int:
    count = result.shape[0]
    rows, present = _rows(rewriter, bag, (count, length))
    if bag.mode == MAX:
        best = rewriter.make("amax.default", result, rows, (1,))
        if bag.padding < 0:
            return best.value
        some = rewriter.make("any.dim", TensorType((count, 1), "bool"), present, 1, True)
        return rewriter.make("where.ScalarOther", result, some, best, 0.0).value
    total = rewriter.make("sum.dim_IntList", result, rows, (1,))
    if bag.mode == SUM:
        return total.value
    if bag.padding < 0:
        return rewriter.make("div.Scalar", result, total, length).value
    used = rewriter.make("sum.dim_IntList", TensorType((count, 1), "int64"), present, (1,), True)
    return _mean(rewriter, total, used, result)


def _mean(rewriter: Rewriter, total: Ref, used: Ref, result: TensorType) -> int:
    """The total over how many rows are in a bag, at least 1."""
    type_ = rewriter.types[used.value]
    least = rewriter.make("clamp_min.default", type_, used, 1)
    return rewriter.make("div.Tensor", result, total, least).value


def _unequal(rewriter: Rewriter, bag: _Bag, offsets: Ref, result: TensorType) -> int:
    """Sums by bag: an index is in the last bag that begins at it or before."""
    places = rewriter.types[bag.indices].shape
    rows, present = _rows(rewriter, bag, places)
    whole = TensorType(places, "int64")
    counted = rewriter.make("arange.default", whole, places[0])
    after = rewriter.make("bucketize.Tensor", whole, counted, offsets, right=True)
    inside = rewriter.make("sub.Scalar", whole, after, 1)
    zeros = rewriter.make("full.default", result, result.shape, 0.0, dtype=f"dtype:{result.dtype}")
    total = rewriter.make("index_add.default", result, zeros, 0, inside, rows)
    if bag.mode == SUM:
        return total.value
    counts = TensorType(result.shape[:1], "int64")
    none = rewriter.make("full.default", counts, counts.shape, 0, dtype="dtype:int64")
    ones = rewriter.make("_to_copy.default", whole, present, dtype="dtype:int64")
    used = rewriter.make("index_add.default", counts, none, 0, inside, ones)
    return _mean(rewriter, total, Ref(rewriter.reshaped(used.value, (counts.shape[0], 1))), result)
