"""Rows that a graph splits into parts, and values that are computed alike beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from ...model.model import Ref, map_refs
from ..graph import FlatGraph

SPLITS = ("aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default")
SLICE = "aten.slice.Tensor"
MAXIMUM_PARTS = 64


class RowParts(NamedTuple):
    """Values that are together all rows of `whole` along `dim`, in their order."""

    values: tuple[int, ...]
    whole: int
    dim: int
    sizes: tuple[int, ...]


def split_rows(graph: FlatGraph) -> Iterator[RowParts]:
    """The rows (dim 0) that are split into parts of a size, the last one at most as long."""
    slices = defaultdict[int, dict[int, int]](dict)
    for op in graph.ops:
        source = next(iter(op.operands()), -1)
        if op.target in SPLITS and min(op.results) >= 0:
            dim = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
            if isinstance(dim, int) and dim % len(graph.types[source].shape) == 0:
                yield from _row_parts(graph, op.results, source)
        elif op.target == SLICE and op.args[1:2] in ((), (0,)) and op.args[4:] in ((), (1,)):
            start = op.args[2] if len(op.args) > 2 else 0
            slices[source].setdefault(start if isinstance(start, int) else 0, op.results[0])
    for source, by_start in slices.items():
        starts = sorted(by_start)
        ends = [s + graph.types[by_start[s]].shape[0] for s in starts]
        if [0, *ends] == [*starts, graph.types[source].shape[0]]:
            yield from _row_parts(graph, tuple(by_start[s] for s in starts), source)


def _row_parts(graph: FlatGraph, values: tuple[int, ...], whole: int) -> Iterator[RowParts]:
    sizes = tuple(graph.types[v].shape[0] for v in values)
    even = len({*sizes[:-1]}) == 1 and 0 < sizes[-1] <= sizes[0]
    if even and 2 <= len(values) <= MAXIMUM_PARTS:
        yield RowParts(values, whole, 0, sizes)


def from_inputs(graph: FlatGraph) -> set[int]:
    """What depends on the batch."""
    values = set(graph.inputs)
    for op in graph.ops:
        if not values.isdisjoint(op.operands()):
            values.update(r for r in op.results if r >= 0)
    return values


def equal_values(graph: FlatGraph) -> dict[int, int]:
    """The first value that is computed as a value is: a view of a weight, say, for every part."""
    numbers: dict[object, int] = {}
    equal: dict[int, int] = {}

    def first(value: int) -> Ref:
        return Ref(equal.get(value, value))

    for op in graph.ops:
        if graph.key in op.operands() or any(r < 0 for r in op.results):
            continue
        args = tuple(map_refs(a, first) for a in op.args)
        named = tuple((name, map_refs(a, first)) for name, a in sorted(op.kwargs.items()))
        for number, result in enumerate(op.results):
            description = op.target, repr(args), repr(named), number
            equal[result] = numbers.setdefault(description, result)
    return equal
