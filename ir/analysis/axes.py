"""Axes of a function: the loops of its operators unified, and the options every operator has.

Every operator's loops start as factors of their own; connecting the dims of a value between producer
and consumers unifies factors, and a view that splits a dim splits the factor (4096 -> 8 · 4 · 128) for
everybody. What remains are the function's axes. An `OpStrategy` splits one operator over one
mesh axis, in terms of positions only: what layout it wants of each operand and leaves on each result.
"""

from __future__ import annotations

from itertools import accumulate
from math import gcd
from operator import mul
from typing import NamedTuple

import msgspec

from .. import ops as _declarations  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers)
from ..model.layout import PARTIAL, REPLICATE, AxisPlacement, Factors
from ..model.loops import Dims, Loops, Paired, declaration, site_of
from ..model.model import Function, Op
from ..plan.sharding import LoopFactor, OpSplit, op_split
from .factors import common_refinement


class OpStrategy(msgspec.Struct, frozen=True):
    """One way to split an operator over one mesh axis.

    `loop` and `factor_index` name the split factor (`""` for none or for partial sums that pass
    through); `factor_id` is the same factor in the function; `inputs` and `outputs` are placements
    along this mesh axis.
    `mean`: the result must be divided by the number of shards to become a partial sum. `partner`
    is a second (loop, factor index) split by the same axis, `partner_id` that factor in the function,
    `paired` which axes do so.
    `joint`: the operator joins its results over the axis itself.
    """

    loop: str
    factor_index: int
    factor_id: int
    size: int
    inputs: tuple[AxisPlacement, ...]
    outputs: tuple[AxisPlacement, ...]
    mean: bool = False
    partner: LoopFactor | None = None
    partner_id: int = -1
    joint: bool = False
    paired: Paired | None = None

    @property
    def splits(self) -> tuple[LoopFactor, ...]:
        """The factors that the axis splits: none, one, or a pair."""
        split = (LoopFactor(self.loop, self.factor_index),) if self.loop else ()
        return split if self.partner is None else (*split, self.partner)

    @property
    def name(self) -> OpSplit:
        """The name under which plans store it."""
        if self.loop or PARTIAL not in self.outputs:
            return op_split(self.splits)
        return op_split((), tuple(i for i, x in enumerate(self.inputs) if x == PARTIAL))


class OpAxes(msgspec.Struct, frozen=True):
    """Analysis of one operator: its declaration, the factors of its loops, its options.

    `options[0]` always replicates the operator; `by_name` has the same ones.
    """

    declared: Loops | None
    loop_factors: dict[str, tuple[int, ...]]
    options: tuple[OpStrategy, ...]
    by_name: dict[OpSplit, OpStrategy]

    @property
    def opaque(self) -> bool:
        return self.declared is None

    def option(self, split: OpSplit) -> OpStrategy | None:
        """The option that a plan names; None where there is none."""
        if split.position is None:
            return self.by_name.get(split)
        return self.options[split.position] if split.position < len(self.options) else None


def _op_axes(
    declared: Loops | None, factors: dict[str, tuple[int, ...]], options: list[OpStrategy]
) -> OpAxes:
    by_name: dict[OpSplit, OpStrategy] = {}
    for option in options:
        by_name.setdefault(option.name, option)
    return OpAxes(declared, factors, tuple(options), by_name)


class Axes(msgspec.Struct, frozen=True):
    """The axes of a function: per value and dim the sizes and ids of its factors, options per operator.

    Equal ids mean that dims walk the same axis; `sizes` is by id.
    """

    factors: tuple[Factors, ...]
    factor_ids: tuple[tuple[tuple[int, ...], ...], ...]
    ops: tuple[OpAxes, ...]
    sizes: dict[int, int]


class _Factors:
    """Union-find over factors that can also be split into an outer and an inner one."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.parts: dict[int, tuple[int, ...]] = {}

    def new(self, size: int) -> list[int]:
        """A new factor of this size; size 1 needs none."""
        if size == 1:
            return []
        self.size.append(size)
        return [len(self.size) - 1]

    def leaves(self, factors: list[int]) -> list[int]:
        """The unsplit factors that make up `factors`, outermost first."""
        leaves: list[int] = []
        for factor in factors:
            while factor in self.parts and len(self.parts[factor]) == 1:
                factor = self.parts[factor][0]
            if factor in self.parts:
                leaves += self.leaves(list(self.parts[factor]))
            else:
                leaves.append(factor)
        return leaves

    def compatible(self, one: list[int], other: list[int]) -> bool:
        """Whether the two factorisations have a common refinement."""
        left, right = (tuple(self.size[a] for a in self.leaves(dim)) for dim in (one, other))
        return common_refinement(left, right) is not None

    def shared(self, one: list[int], other: list[int]) -> tuple[list[int], list[int]]:
        """The outermost factors of two factorisations of one dim that have a common refinement."""
        left, right = self.leaves(one), self.leaves(other)
        of_left: list[int] = list(accumulate([self.size[a] for a in left], mul))
        of_right: list[int] = list(accumulate([self.size[a] for a in right], mul))
        for size in sorted(set(of_left) & set(of_right), reverse=True):
            outer = left[: of_left.index(size) + 1], right[: of_right.index(size) + 1]
            if self.compatible(*outer):
                return outer
        return [], []

    def unify(self, one: list[int], other: list[int]) -> None:
        """Make two factorizations of one dim the same factors."""
        while True:
            left, right = self.leaves(one), self.leaves(other)
            pair = next(((x, y) for x, y in zip(left, right, strict=False) if x != y), None)
            if pair is None:
                return
            x, y = pair
            if self.size[x] < self.size[y]:
                x, y = y, x
            if self.size[x] == self.size[y]:
                self.parts[x] = (y,)
            else:
                inner = self.new(self.size[x] // self.size[y])
                self.parts[x] = (y, *inner)


def analyse(function: Function, known: dict[int, Factors] | None = None) -> Axes:
    """Infer the axes of a function. Pure and deterministic.

    `known` gives factors of some values' dims that the function's callers need to tell apart.
    """
    union = _Factors()
    dims: dict[int, list[list[int]]] = {}
    for value, type_ in enumerate(function.types):
        dims[value] = [union.new(size) for size in type_.shape]
        for dim, sizes in zip(dims[value], (known or {}).get(value, ()), strict=False):
            if dim and len(sizes) > 1:
                union.parts[dim[0]] = tuple(a for size in sizes for a in union.new(size))
    loops = [_connect(op, function, dims, union) for op in function.ops]
    for value, gradient in _pairs(function):
        for one, other in zip(dims[value], dims[gradient], strict=True):
            union.unify(*union.shared(one, other))
    leaf = {value: [union.leaves(dim) for dim in tensor] for value, tensor in dims.items()}
    factors = tuple(
        tuple(tuple(union.size[a] for a in dim) for dim in leaf[value])
        for value in range(len(function.types))
    )
    names = tuple(tuple(tuple(d) for d in leaf[value]) for value in range(len(function.types)))
    ops = tuple(
        _options(bound.declared, bound, union) if bound.declared else _opaque(op)
        for op, bound in zip(function.ops, loops, strict=True)
    )
    extents = {a: union.size[a] for tensor in names for dim in tensor for a in dim}
    return Axes(factors, names, ops, extents)


def _pairs(function: Function) -> list[tuple[int, int]]:
    """Values and their gradients: a boundary gives both the same layout."""
    pairs = [(i.value, i.gradient) for i in function.inputs if i.gradient is not None]
    return pairs + [(o.value, o.tangent) for o in function.outputs if o.tangent is not None]


class Bound(NamedTuple):
    """A declaration with the factors of its loops; those that are `apart` are not split, since a value
    has other factors of the same dim."""

    declared: Loops | None
    factors: dict[str, list[int]]
    apart: list[int]


def _connect(
    op: Op, function: Function, dims: dict[int, list[list[int]]], union: _Factors
) -> Bound:
    """Bind an operator's loops to factors and unify them with the dims of its values."""
    declared = declaration(site_of(op, function.types))
    if declared is None:
        return Bound(None, {}, [])
    bound = {loop.name: union.new(loop.size) for loop in declared.loops}
    apart: list[int] = []
    alone: set[str] = set()  # loops with factors apart
    values = (*op.operands(), *op.results)
    for value, tensor in zip(values, (*declared.inputs, *declared.outputs), strict=True):
        if value < 0:
            continue
        for position, dim in enumerate(tensor):
            merged = [a for name in dim for a in bound[name]]
            outer, same = union.shared(dims[value][position], merged)
            union.unify(outer, same)
            rest = union.leaves(merged)[len(union.leaves(same)) :]
            apart += rest
            alone.update(n for n in dim if not set(rest).isdisjoint(union.leaves(bound[n])))
    pairs = tuple(pair for pair in declared.pairs if alone.isdisjoint(pair))
    return Bound(msgspec.structs.replace(declared, pairs=pairs), bound, apart)


def _opaque(op: Op) -> OpAxes:
    """An operator without a declaration is replicated."""
    inputs, outputs = len(op.operands()), len(op.results)
    return _op_axes(
        None, {}, [OpStrategy("", 0, -1, 1, (REPLICATE,) * inputs, (REPLICATE,) * outputs)]
    )


def _options(declared: Loops, bound: Bound, union: _Factors) -> OpAxes:
    leaf = {name: union.leaves(factors) for name, factors in bound.factors.items()}
    apart = frozenset(union.leaves(bound.apart))
    sizes = {name: tuple(union.size[f] for f in factors) for name, factors in leaf.items()}
    replicated = OpStrategy(
        "", 0, -1, 1, (REPLICATE,) * len(declared.inputs), (REPLICATE,) * len(declared.outputs)
    )
    options = [replicated]
    for loop in declared.loops:
        if loop.kind == "whole":
            continue
        joint = loop.kind == "joint"
        absent = REPLICATE if joint else PARTIAL
        for index, size in enumerate(sizes[loop.name]):
            split = (LoopFactor(loop.name, index),)
            inputs = _states(declared.inputs, split, leaf, REPLICATE)
            outputs = _states(declared.outputs, split, leaf, absent)
            if PARTIAL in outputs:
                inputs = tuple(
                    PARTIAL if i in declared.added_to else s for i, s in enumerate(inputs)
                )
            mean = loop.kind == "mean"
            factor = leaf[loop.name][index]
            if factor in apart:
                continue
            options.append(
                OpStrategy(loop.name, index, factor, size, inputs, outputs, mean, joint=joint)
            )
    for one, other in declared.pairs:
        options += _paired(declared, one, other, sizes, leaf)
    for group in declared.linear:
        inputs: tuple[AxisPlacement, ...] = tuple(
            PARTIAL if i in group else REPLICATE for i in range(len(declared.inputs))
        )
        options.append(OpStrategy("", 0, -1, 1, inputs, (PARTIAL,) * len(declared.outputs)))
    return _op_axes(declared, sizes, options)


def _paired(
    declared: Loops,
    one: str,
    other: str,
    sizes: dict[str, tuple[int, ...]],
    leaf: dict[str, list[int]],
) -> list[OpStrategy]:
    """Options in which one axis splits a factor of both loops; a tensor is sharded along the one that
    it carries."""
    options: list[OpStrategy] = []
    for i, size in enumerate(sizes[one]):
        for j, other_size in enumerate(sizes[other]):
            splits = (LoopFactor(one, i), LoopFactor(other, j))
            inputs = _states(declared.inputs, splits, leaf, REPLICATE)
            outputs = _states(declared.outputs, splits, leaf, REPLICATE)
            factor, common = leaf[one][i], gcd(size, other_size)
            options.append(
                OpStrategy(
                    one,
                    i,
                    factor,
                    common,
                    inputs,
                    outputs,
                    partner=splits[1],
                    partner_id=leaf[other][j],
                    paired=declared.paired,
                )
            )
    return options


def _states(
    tensors: tuple[Dims, ...],
    splits: tuple[LoopFactor, ...],
    leaf: dict[str, list[int]],
    absent: AxisPlacement,
) -> tuple[AxisPlacement, ...]:
    """Placements of all these tensors under a split."""
    return tuple(_state(dims, splits, leaf, absent) for dims in tensors)


def _state(
    dims: Dims, splits: tuple[LoopFactor, ...], leaf: dict[str, list[int]], absent: AxisPlacement
) -> AxisPlacement:
    """Placement of a tensor under a split: (dim, factor index) where it carries one of the factors."""
    for loop, index in splits:
        for position, dim in enumerate(dims):
            before = 0
            for name in dim:
                if name == loop:
                    return (position, before + index)
                before += len(leaf[name])
    return absent
