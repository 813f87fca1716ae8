"""Weights in shards are gathered in slices, each beside the part of the product that reads it (OSDP:
Jiang et al. 2023, operator splitting). A slice has the same rows of every rank's shard:

    %5 = comm.all_gather %w slice 0        %5 = comm.part %w 0 4 0 1
    %6 = aten.mm %x %5                →    %6 = comm.all_gather %5 slice 0
                                           %7 = aten.mm %x %6
                                           %8 = comm.place None %7 0 4 1 2     and so four times

Gradients leave the same way: a slice of them is computed, reduced, and forgotten. Where shards are of
an inner factor, `outer` elements outside of it, a slice has a part of every one of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from ...analysis.sliced_weights import free_dimension, same_dimension
from ...model.loops import Loops, declaration, site_of
from ...model.mesh import Mesh
from ...model.model import Argument, Function, Op, Ref, map_refs
from ...model.tensor import TensorType
from ...plan.program import BUCKET_BYTES
from ...plan.strategy import ROLES

SLICE_BYTES = BUCKET_BYTES  # of a weight that is gathered at once, at most
GATHER, SCATTER = "comm.all_gather", "comm.reduce_scatter"
PLACE, PART, ADD = "comm.place", "comm.part", "comm.add"


class Slicing(NamedTuple):
    """A product in slices: `collective` of shards along a dimension with `outer` blocks of them and of
    `ranks` more where all have arrived; each of `parts` slices has `size` of its elements. `chain`:
    operators from the product to a gradient's collective, with the dimension of their result that is
    sliced; `operand`: which one of the product has that loop, in which `dim`; -1: its result has it."""

    collective: Op
    chain: tuple[tuple[Op, int], ...]
    outer: int
    ranks: int
    parts: int
    size: int
    operand: int
    dim: int

    @property
    def where(self) -> tuple[int, int]:
        """The sliced dimension of what the product reads or gives, and the blocks outside of a slice."""
        return self.dim, self.outer * self.ranks


def in_slices(function: Function, mesh: Mesh) -> Function:
    """The per-device function with gathers of weights, and sums of their gradients, in slices."""
    sizes = {a.name: a.size for a in mesh.axes if a.name in ROLES and ROLES[a.name].slices}
    if not any(_over(op) in sizes for op in function.ops):
        return function
    return _Slicer(function, sizes).run()


def _over(op: Op) -> str:
    """The axis of a gather or of a scatter."""
    return str(op.args[1]) if op.target in (GATHER, SCATTER) else ""


class _Slicer:
    def __init__(self, function: Function, sizes: dict[str, int]) -> None:
        self.function, self.sizes = function, sizes
        self.types, self.ops = list(function.types), list[Op]()
        self.uses = Counter(v for op in function.ops for v in op.operands())
        self.uses.update(o.value for o in function.outputs)
        self.reader = {v: n for n, op in enumerate(function.ops) for v in op.operands()}
        self.maker = {r: n for n, op in enumerate(function.ops) for r in op.results}
        self.slicings: dict[int, Slicing] = {}  # by number of the product
        self.replaced: set[int] = set()  # numbers of operators that slices have of their own

    def run(self) -> Function:
        for number, op in enumerate(self.function.ops):
            if _over(op) in self.sizes:
                (self.note_gather if op.target == GATHER else self.note_scatter)(number, op)
        forward = 0
        for number, op in enumerate(self.function.ops):
            if number in self.slicings:
                slicing = self.slicings[number]
                emit = self.weight if slicing.collective.target == GATHER else self.gradient
                emit(op, slicing)
            elif number not in self.replaced:
                self.ops.append(op)
            if number < self.function.forward:
                forward = len(self.ops)
        return replace(self.function, types=tuple(self.types), ops=tuple(self.ops), forward=forward)

    def note_gather(self, number: int, op: Op) -> None:
        """A gather that one product alone reads, in the same half."""
        (value,), (dim, _) = op.results, _position(op)
        reader = self.reader.get(value, number)
        product, declared = self.function.ops[reader], self.declared(reader)
        same_half = (number < self.function.forward) == (reader < self.function.forward)
        if declared is None or self.uses[value] != 1 or not same_half:
            return
        operand = product.operands().index(value)
        loops = declared.inputs[operand][dim]
        others = [i for i, dims in enumerate(declared.inputs) if i != operand and loops in dims]
        free = free_dimension(declared, operand) == dim
        summed = declared.work == "gemm" and len(others) == 1 and loops not in declared.outputs[0]
        if reader in self.slicings or not (free or (summed and reader >= self.function.forward)):
            return
        if free:
            operand, dim = -1, declared.outputs[0].index(loops)
        else:
            operand, dim = others[0], declared.inputs[others[0]].index(loops)
        self.note(reader, (number,), op, (), self.types[value], (operand, dim))

    def note_scatter(self, number: int, op: Op) -> None:
        """A scatter of what one product alone gives, perhaps transposed or cast."""
        (value,), chain, numbers = op.operands(), list[tuple[Op, int]](), [number]
        dim: int | None = _position(op)[0]
        type_ = self.types[value]
        while dim is not None and self.uses[value] == 1 and value in self.maker:
            at = self.maker[value]
            maker, declared = self.function.ops[at], self.declared(at)
            if declared is None or declared.shapes or at < self.function.forward:
                return
            chain.insert(0, (maker, dim))
            if len(maker.operands()) == 1:
                numbers.append(at)
                dim, (value,) = same_dimension(declared, dim), maker.operands()
                continue
            loops = declared.outputs[0][dim]
            where = [
                (operand, free)
                for operand, dims in enumerate(declared.inputs)
                if (free := free_dimension(declared, operand)) is not None and dims[free] == loops
            ]
            once = where and maker.operands().count(maker.operands()[where[0][0]]) == 1
            if once and at not in self.slicings:
                self.note(at, tuple(numbers), op, tuple(chain), type_, where[0])
            return

    def note(
        self,
        product: int,
        replaced: tuple[int, ...],
        collective: Op,
        chain: tuple[tuple[Op, int], ...],
        whole: TensorType,
        where: tuple[int, int],
    ) -> None:
        """Note a product in the fewest slices that are small enough, where that is more than one."""
        ranks, (dim, outer) = self.sizes[_over(collective)], _position(collective)
        shard = whole.shape[dim] // (ranks * outer)
        counts = [n for n in range(1, shard + 1) if shard % n == 0]
        count = min((n for n in counts if whole.bytes <= n * SLICE_BYTES), default=shard)
        if count > 1:
            size = whole.shape[dim] // count
            slicing = Slicing(collective, chain, outer, ranks, count, size, *where)
            self.slicings[product] = slicing
            self.replaced.update(replaced)

    def declared(self, number: int) -> Loops | None:
        return declaration(site_of(self.function.ops[number], self.function.types))

    # the operators of the slices

    def weight(self, product: Op, slicing: Slicing) -> None:
        """A product that reads a gathered weight: parts of its result, or terms of it."""
        gather, total = slicing.collective, None
        (shard,), (whole,), (dim, outer) = gather.operands(), gather.results, _position(gather)
        (result,) = product.results
        for index in range(slicing.parts):
            slice_ = self.part(shard, index, slicing, (dim, outer), product)
            type_ = self.sized(whole, dim, slicing.size)
            slice_ = self.emit(GATHER, (Ref(slice_), *gather.args[1:]), type_, product)
            last = result if index == slicing.parts - 1 else None
            if slicing.operand < 0:
                type_ = self.sized(result, slicing.dim, slicing.size)
                term = self.copy(product, {whole: slice_}, type_)
                total = self.place(total, term, index, slicing, product, last)
                continue
            operand = product.operands()[slicing.operand]
            read = self.part(operand, index, slicing, slicing.where, product)
            term = self.copy(product, {whole: slice_, operand: read}, self.types[result])
            if total is not None:
                term = self.emit(ADD, (Ref(total), Ref(term)), self.types[result], product, last)
            total = term

    def gradient(self, product: Op, slicing: Slicing) -> None:
        """A product that gives a gradient: slices of it are reduced one by one."""
        scatter, total = slicing.collective, None
        operand, (result,) = product.operands()[slicing.operand], scatter.results
        dim, outer = _position(scatter)
        for index in range(slicing.parts):
            term, before = self.part(operand, index, slicing, slicing.where, product), operand
            for op, sliced in slicing.chain:
                type_ = self.sized(op.results[0], sliced, slicing.size)
                term, before = self.copy(op, {before: term}, type_), op.results[0]
            type_ = self.sized(result, dim, slicing.size // slicing.ranks)
            term = self.emit(SCATTER, (Ref(term), *scatter.args[1:]), type_, product)
            last = result if index == slicing.parts - 1 else None
            total = self.place(total, term, index, slicing, product, last, (dim, outer))

    def place(
        self,
        total: int | None,
        term: int,
        index: int,
        slicing: Slicing,
        like: Op,
        last: int | None,
        where: tuple[int, int] | None = None,
    ) -> int:
        """Write a term to its place in the result."""
        dim, outer = where or slicing.where
        full = None if total is None else Ref(total)
        type_ = self.sized(term, dim, self.types[term].shape[dim] * slicing.parts)
        args: tuple[Argument, ...] = (full, Ref(term), index, slicing.parts, dim, outer)
        return self.emit(PLACE, args, type_, like, last)

    def part(
        self, value: int, index: int, slicing: Slicing, where: tuple[int, int], like: Op
    ) -> int:
        """The part of a value that goes with a slice."""
        dim, outer = where
        type_ = self.sized(value, dim, self.types[value].shape[dim] // slicing.parts)
        return self.emit(PART, (Ref(value), index, slicing.parts, dim, outer), type_, like)

    def copy(self, op: Op, swaps: dict[int, int], type_: TensorType) -> int:
        """The operator on parts of its operands."""
        swap: Callable[[int], Argument] = lambda v: Ref(swaps.get(v, v))  # noqa: E731
        self.types.append(type_)
        result = len(self.types) - 1
        args = tuple(map_refs(a, swap) for a in op.args)
        self.ops.append(replace(op, args=args, results=(result,)))
        return result

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        type_: TensorType,
        like: Op,
        result: int | None = None,
    ) -> int:
        """Append an operator; its result is a new value unless it is one of the function's."""
        if result is None:
            self.types.append(type_)
            result = len(self.types) - 1
        self.ops.append(Op(target, args, {}, (result,), like.scope))
        return result

    def sized(self, value: int, dim: int, size: int) -> TensorType:
        """The type of a value with another size of a dimension."""
        type_ = self.types[value]
        shape = tuple(size if d == dim else n for d, n in enumerate(type_.shape))
        return replace(type_, shape=shape)


def _position(op: Op) -> tuple[int, int]:
    """The dimension that a collective gathers or scatters, and how many blocks of shards it has."""
    dim, outer = op.args[2:]
    assert isinstance(dim, int)
    assert isinstance(outer, int)
    return dim, outer
