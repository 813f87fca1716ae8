"""Rows that a model takes through the same operators part by part, as one.

Long contexts are taken through the head and the loss in parts (`x.chunk(4)`, `x[i : i + n]`), so that
not all scores are in memory at once. A part is of some samples only: devices and micro-batches would
have to send rows to one another. What parts become alike is computed of all rows; a sum over a part is
one over all rows with zeros outside of it, and parts that are joined again are the rows. Memory is the
plan's business.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ...model.loops import Loops, declaration, site_of
from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..graph import FlatGraph, replace, substitute
from .split_rows import SLICE, RowParts, equal_values, from_inputs, split_rows

CAT = "aten.cat.default"
TOTALS = ("aten.sum.default", "aten.mean.default")


@dataclass
class _Folding:
    """What becomes of the operators: new ones at the place of an old one, and the old ones' results."""

    at: defaultdict[int, list[Op]] = field(default_factory=lambda: defaultdict(list))
    removed: set[int] = field(default_factory=set)
    renamed: dict[int, int] = field(default_factory=dict)
    ends: int = 0


def rejoined(graph: FlatGraph) -> None:
    """Compute of all rows what the graph computes of all parts of them. Changes the graph."""
    sources = from_inputs(graph)
    folder = _Folder(graph)
    for parts in split_rows(graph):
        if parts.whole in sources:
            folder.known[parts.values[0]] = parts
    if folder.known:
        folder.run()


class _Folder:
    def __init__(self, graph: FlatGraph) -> None:
        self.graph, self.types = graph, graph.types
        self.known: dict[int, RowParts] = {}
        self.folding = _Folding()
        self.same_value = equal_values(graph)
        self.users = defaultdict[int, list[int]](list)
        for place, op in enumerate(graph.ops):
            for value in op.operands():
                self.users[value].append(place)

    def run(self) -> None:
        for place, op in enumerate(self.graph.ops):
            if place in self.folding.removed or self.graph.key in op.operands():
                continue
            if any(v in self.known for v in op.operands()):
                if op.target == CAT:
                    self.join(place, op)
                elif (places := self.counterparts(place, op)) is not None:
                    self.fold(places)
        if self.folding.ends:
            self.write()

    def counterparts(self, place: int, op: Op) -> list[int] | None:
        """The operators that do with the other parts what this one does with the first ones."""
        first = next(self.known[v] for v in op.operands() if v in self.known)
        places = [place]
        for number, value in enumerate(first.values[1:], 1):
            for other in self.users[value]:
                if (
                    other not in places
                    and other not in self.folding.removed
                    and self.same(op, self.graph.ops[other], number)
                ):
                    places.append(other)
                    break
            else:
                return None
        return places

    def same(self, op: Op, other: Op, number: int) -> bool:
        if op.target != other.target or op.kwargs.keys() != other.kwargs.keys():
            return False
        if [r < 0 for r in op.results] != [r < 0 for r in other.results]:
            return False
        pairs = [*zip(op.args, other.args, strict=False)]
        pairs += [(op.kwargs[name], other.kwargs[name]) for name in op.kwargs]
        return len(op.args) == len(other.args) and all(self.matched(a, b, number) for a, b in pairs)

    def matched(self, a: Argument, b: Argument, number: int) -> bool:
        """Whether two arguments are the same, or the same of two parts; sizes are compared later."""
        if isinstance(a, Ref) and isinstance(b, Ref):
            parts = self.known.get(a.value)
            if parts is None:
                return self.same_value.get(a.value, a.value) == self.same_value.get(
                    b.value, b.value
                )
            return self.part(parts, number) == b.value
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            integers = all(type(x) is int and type(y) is int for x, y in zip(a, b, strict=True))
            return integers or all(self.matched(x, y, number) for x, y in zip(a, b, strict=True))
        return type(a) is type(b) and a == b

    def part(self, parts: RowParts, number: int) -> int:
        return parts.values[number] if number < len(parts.values) else -1

    def fold(self, places: list[int]) -> None:
        ops = [self.graph.ops[place] for place in places]
        operands = [self.known[v] for v in ops[0].operands() if v in self.known]
        if len({len(p.values) for p in operands}) > 1:
            return
        if ops[0].target in TOTALS:
            self.total(places, operands[0])
            return
        types = list(self.types)
        whole = self.of_all_rows(ops, types, places.index(min(places)))
        if whole is None:
            return
        op, results = whole
        self.types += types[len(self.types) :]
        self.folding.at[min(places)].append(op)
        self.folding.removed.update(places)
        for parts in results:
            self.known[parts.values[0]] = parts

    def of_all_rows(
        self, ops: list[Op], types: list[TensorType], first: int
    ) -> tuple[Op, list[RowParts]] | None:
        """The operator on all rows, and its results' parts; None where it does not act row by row.

        The types of its results are added to `types`. What it reads beside the rows is what the
        `first` one of the operators reads.
        """
        declared = self.declared(ops[0])
        row = None if declared is None else self.row_loop(ops[0], declared)
        if declared is None or row is None:
            return None
        results, parts_of_results = list[int](), list[RowParts]()
        for number, dims in enumerate(declared.outputs):
            values = tuple(op.results[number] for op in ops)
            if values[0] < 0:
                results.append(-1)
                continue
            at = next((d for d, names in enumerate(dims) if row in names[:1]), None)
            if at is None:
                return None
            shapes = [self.types[v].shape for v in values]
            sizes = tuple(shape[at] for shape in shapes)
            if any(_without(s, at) != _without(shapes[0], at) for s in shapes):
                return None
            results.append(len(types))
            types.append(TensorType(_with(shapes[0], at, sum(sizes)), self.types[values[0]].dtype))
            parts_of_results.append(RowParts(values, results[-1], at, sizes))
        args = _resized(ops, declared, row, first)
        if args is None:
            return None
        operands = (p for v in ops[0].operands() if (p := self.known.get(v)))
        renamed = {p.values[first]: p.whole for p in operands}
        op = substitute(replace(ops[first], args=args, results=tuple(results)), renamed)
        try:
            declaration(site_of(op, types))
        except AssertionError:  # its sizes do not go together
            return None
        return op, parts_of_results

    def declared(self, op: Op) -> Loops | None:
        """The loops of the operator on the first part, which is looked at as twice as long where it is a
        single row: a dim of 1 has no loop."""
        parts = [self.known[v] for v in op.operands() if v in self.known]
        if parts[0].sizes[0] > 1:
            return declaration(site_of(op, self.types))
        types = list(self.types)
        lengthened = [(p.values[0], p.dim) for p in parts]
        for value, dim in [*lengthened, *((r, parts[0].dim) for r in op.results if r >= 0)]:
            shape = self.types[value].shape
            if dim >= len(shape):
                return None
            types[value] = TensorType(_with(shape, dim, 2 * shape[dim]), types[value].dtype)
        try:
            return declaration(site_of(op, types))
        except AssertionError:  # its results have their rows elsewhere
            return None

    def row_loop(self, op: Op, declared: Loops) -> str | None:
        """The loop over rows: the outermost one of the dim of every part, and of nothing else."""
        rows, others = set[str](), set[str]()
        for value, dims in zip(op.operands(), declared.inputs, strict=True):
            parts = self.known.get(value)
            first = None if parts is None else next(iter(dims[parts.dim]), "")
            if first is not None:
                rows.add(first)
            others.update(name for dim in dims for name in dim if name != first)
        row = next(iter(rows))
        if len(rows) > 1 or not row or row in others:
            return None
        kinds = {loop.name: loop.kind for loop in declared.loops}
        located = any(row in dim for _, dims in declared.shard_offsets for dim in dims)
        return None if kinds[row] != "split" or located else row

    def total(self, places: list[int], parts: RowParts) -> None:
        """The sums (or means) of all parts: of all rows, with zeros outside of each."""
        ops = [self.graph.ops[place] for place in places]
        shape, result = self.types[parts.whole].shape, self.types[ops[0].results[0]]
        writer = _Writer(self.graph, self.folding.at[min(places)], ops[0].scope)
        rows, type_ = parts.whole, TensorType((shape[parts.dim],), result.dtype)
        if self.types[rows].dtype != result.dtype:
            wide = TensorType(shape, result.dtype)
            rows = writer.put("_to_copy.default", wide, Ref(rows), dtype=f"dtype:{result.dtype}")
        if len(shape) > 1:
            others = tuple(d for d in range(len(shape)) if d != parts.dim)
            rows = writer.put("sum.dim_IntList", type_, Ref(rows), others)
        count, total = len(parts.sizes), type_.shape[0]
        both = (count, total)
        place = writer.put("arange.default", TensorType((total,), "int64"), total)
        of = writer.put(
            "floor_divide.default", TensorType((total,), "int64"), Ref(place), parts.sizes[0]
        )
        number = writer.put("arange.default", TensorType((count,), "int64"), count)
        column = writer.put(
            "view.default", TensorType((count, 1), "int64"), Ref(number), (count, 1)
        )
        inside = writer.put("eq.Tensor", TensorType(both, "bool"), Ref(column), Ref(of))
        zero = 0.0 if result.is_float else 0
        masked = writer.put(
            "where.ScalarOther", TensorType(both, result.dtype), Ref(inside), Ref(rows), zero
        )
        totals = writer.put(
            "sum.dim_IntList", TensorType((count,), result.dtype), Ref(masked), (1,)
        )
        for at, op in enumerate(ops):
            value = writer.put("select.int", result, Ref(totals), 0, at)
            if op.target == TOTALS[1]:
                elements = prod(self.types[op.operands()[0]].shape)
                value = writer.put("div.Tensor", result, Ref(value), float(elements))
            self.folding.renamed[op.results[0]] = value
        self.folding.removed.update(places)
        self.folding.ends += 1

    def join(self, place: int, op: Op) -> None:
        """All parts in their order, joined along their dim, are the rows."""
        values = tuple(op.operands())
        parts = self.known.get(values[0])
        dim = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)
        if parts is None or parts.values != values or not isinstance(dim, int):
            return
        rank = len(self.types[parts.whole].shape)
        if dim % rank == parts.dim and self.types[parts.whole] == self.types[op.results[0]]:
            self.folding.renamed[op.results[0]] = parts.whole
            self.folding.removed.add(place)
            self.folding.ends += 1

    def write(self) -> None:
        """Put the operators in; what else reads a part reads a slice of all rows."""
        graph, folding, ops = self.graph, self.folding, list[Op]()
        computed = {r: n for n in folding.removed for r in graph.ops[n].results}
        owners = {
            v: (parts, n)
            for parts in self.known.values()
            for n, v in enumerate(parts.values)
            if v in computed
        }
        renamed = dict(folding.renamed)

        def sliced(values: set[int], scope: str) -> None:
            for value in sorted(values):
                if value in owners and value not in renamed:
                    parts, number = owners[value]
                    start = sum(parts.sizes[:number])
                    writer = _Writer(graph, ops, scope)
                    renamed[value] = writer.put(
                        SLICE.removeprefix("aten."),
                        self.types[value],
                        Ref(parts.whole),
                        parts.dim,
                        start,
                        start + parts.sizes[number],
                    )

        for place, op in enumerate(graph.ops):
            ops += [substitute(new, renamed) for new in folding.at.get(place, ())]
            if place not in folding.removed:
                sliced(set(op.operands()), op.scope)
                ops.append(substitute(op, renamed))
        sliced(graph.outputs(), graph.ops[-1].scope)
        graph.ops = ops
        graph.loss = renamed.get(graph.loss, graph.loss)
        graph.returned = tuple(renamed.get(v, v) for v in graph.returned)
        graph.updates = {name: renamed.get(v, v) for name, v in graph.updates.items()}
        graph.drop_dead()


class _Writer(NamedTuple):
    """Appends operators with one result to a list."""

    graph: FlatGraph
    ops: list[Op]
    scope: str

    def put(self, name: str, type_: TensorType, *args: Argument, **kwargs: Argument) -> int:
        result = self.graph.value(type_)
        self.ops.append(Op(f"aten.{name}", args, kwargs, (result,), self.scope))
        return result


def _resized(ops: list[Op], declared: Loops, row: str, first: int) -> tuple[Argument, ...] | None:
    """The arguments for all rows: sizes of dims over rows are added up, all others are equal."""
    args = list(ops[first].args)
    sized = dict(declared.shapes)
    for position, argument in enumerate(args):
        literals = [op.args[position] for op in ops]
        dims = sized.get(position)
        if dims is None or not isinstance(argument, tuple) or len(dims) != len(argument):
            same = isinstance(argument, Ref) or all(literal == argument for literal in literals)
            if not same and not _has_reference(argument):
                return None
            continue
        sizes_of_rows: list[Argument] = []
        for number, dim in enumerate(dims):
            sizes = [literal[number] for literal in literals if isinstance(literal, tuple)]
            if row in dim and sizes[0] != -1:
                if dim[0] != row:
                    return None
                sizes_of_rows.append(sum(s for s in sizes if isinstance(s, int)))
            elif any(s != sizes[0] for s in sizes):
                return None
            else:
                sizes_of_rows.append(sizes[0])
        args[position] = tuple(sizes_of_rows)
    return tuple(args)


def _has_reference(argument: Argument) -> bool:
    return isinstance(argument, Ref) or (
        isinstance(argument, tuple) and any(map(_has_reference, argument))
    )


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])
