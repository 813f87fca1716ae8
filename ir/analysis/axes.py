"""Axes of a function: the loops of its operators unified, and the options every operator has.

Every operator's loops start as atoms of their own; connecting the dims of a value between its maker
and its users unifies atoms, and a view that splits a dim splits the atom (4096 -> 8 · 4 · 128) for
everybody. What remains are the function's axes. An `Option` is one way to split one operator over one
mesh axis, in terms of positions only: what layout it wants of each operand and leaves on each result.
"""

from __future__ import annotations

from math import gcd

import msgspec

from .. import ops as _declarations  # noqa: F401  (fills the registry)
from ..layout import PARTIAL, REPLICATE, Factors, State
from ..loops import Dims, Loops, declaration, site_of
from ..model import Function, Op


class Option(msgspec.Struct, frozen=True):
    """One way to split an operator over one mesh axis.

    `loop` and `part` name the split factor (`""` for none or for sums passing through); `atom` is
    the function's axis it belongs to; `inputs` and `outputs` are layouts along this mesh axis.
    `mean`: the result must be divided by the number of pieces to become a partial sum. `partner`
    is a second (loop, part) split by the same axis. `joint`: the operator joins its results over
    the axis itself.
    """

    loop: str
    part: int
    atom: int
    size: int
    inputs: tuple[State, ...]
    outputs: tuple[State, ...]
    mean: bool = False
    partner: tuple[str, int] | None = None
    joint: bool = False

    @property
    def cuts(self) -> tuple[tuple[str, int], ...]:
        """The (loop, part) that the axis splits: none, one, or a pair."""
        own = ((self.loop, self.part),) if self.loop else ()
        return own if self.partner is None else (*own, self.partner)


class OpAxes(msgspec.Struct, frozen=True):
    """What is known of one operator: its declaration, its loops' factors, its options.

    `options[0]` is always the whole operator on every rank.
    """

    declared: Loops | None
    parts: dict[str, tuple[int, ...]]
    options: tuple[Option, ...]

    @property
    def opaque(self) -> bool:
        return self.declared is None


class Axes(msgspec.Struct, frozen=True):
    """The axes of a function: factors and atoms of every value's dims, options of every operator."""

    factors: tuple[Factors, ...]
    atoms: tuple[tuple[tuple[int, ...], ...], ...]
    ops: tuple[OpAxes, ...]
    sizes: dict[int, int]


class _Atoms:
    """Union-find over atoms that can also be split into an outer and an inner factor."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.parts: dict[int, tuple[int, ...]] = {}

    def new(self, size: int) -> list[int]:
        """A fresh atom of this size; size 1 needs none."""
        if size == 1:
            return []
        self.size.append(size)
        return [len(self.size) - 1]

    def leaves(self, atoms: list[int]) -> list[int]:
        found = []
        for atom in atoms:
            while atom in self.parts and len(self.parts[atom]) == 1:
                atom = self.parts[atom][0]
            if atom in self.parts:
                found += self.leaves(list(self.parts[atom]))
            else:
                found.append(atom)
        return found

    def nest(self, one: list[int], other: list[int]) -> bool:
        """Whether the two factorisations have a common refinement."""
        left = [self.size[a] for a in self.leaves(one)]
        right = [self.size[a] for a in self.leaves(other)]
        while left and right:
            x, y = left.pop(0), right.pop(0)
            if x > y and x % y == 0:
                left.insert(0, x // y)
            elif y > x and y % x == 0:
                right.insert(0, y // x)
            elif x != y:
                return False
        return not left and not right

    def unify(self, one: list[int], other: list[int]) -> None:
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
    atoms = _Atoms()
    dims: dict[int, list[list[int]]] = {}
    for value, type_ in enumerate(function.types):
        dims[value] = [atoms.new(size) for size in type_.shape]
        for dim, sizes in zip(dims[value], (known or {}).get(value, ()), strict=False):
            if dim and len(sizes) > 1:
                atoms.parts[dim[0]] = tuple(a for size in sizes for a in atoms.new(size))
    loops = [_connect(op, function, dims, atoms) for op in function.ops]
    for value, gradient in _pairs(function):
        if all(map(atoms.nest, dims[value], dims[gradient])):
            for one, other in zip(dims[value], dims[gradient], strict=True):
                atoms.unify(one, other)
    leaf = {value: [atoms.leaves(dim) for dim in tensor] for value, tensor in dims.items()}
    factors = tuple(
        tuple(tuple(atoms.size[a] for a in dim) for dim in leaf[value])
        for value in range(len(function.types))
    )
    names = tuple(tuple(tuple(d) for d in leaf[value]) for value in range(len(function.types)))
    ops = tuple(
        _options(declared, bound, atoms) if declared else _opaque(op)
        for op, (declared, bound) in zip(function.ops, loops, strict=True)
    )
    extents = {a: atoms.size[a] for tensor in names for dim in tensor for a in dim}
    return Axes(factors, names, ops, extents)


def _pairs(function: Function) -> list[tuple[int, int]]:
    """Values and their gradients: a boundary gives both the same layout."""
    pairs = [(i.value, i.gradient) for i in function.inputs if i.gradient is not None]
    return pairs + [(o.value, o.tangent) for o in function.outputs if o.tangent is not None]


Bound = tuple[Loops | None, dict[str, list[int]]]


def _connect(op: Op, function: Function, dims: dict[int, list[list[int]]], atoms: _Atoms) -> Bound:
    """Bind an operator's loops to atoms and unify them with the dims of its values."""
    declared = declaration(site_of(op, function.types))
    if declared is None:
        return None, {}
    bound = {loop.name: atoms.new(loop.size) for loop in declared.loops}
    values = (*op.operands(), *op.results)
    for value, tensor in zip(values, (*declared.inputs, *declared.outputs), strict=True):
        if value < 0:
            continue
        for position, dim in enumerate(tensor):
            merged = [a for name in dim for a in bound[name]]
            if atoms.nest(dims[value][position], merged):
                atoms.unify(dims[value][position], merged)
            else:
                return None, {}
    return declared, bound


def _opaque(op: Op) -> OpAxes:
    """An operator nobody declared runs whole on every rank."""
    inputs, outputs = len(op.operands()), len(op.results)
    return OpAxes(None, {}, (Option("", 0, -1, 1, (REPLICATE,) * inputs, (REPLICATE,) * outputs),))


def _options(declared: Loops, bound: dict[str, list[int]], atoms: _Atoms) -> OpAxes:
    leaf = {name: atoms.leaves(found) for name, found in bound.items()}
    parts = {name: tuple(atoms.size[a] for a in found) for name, found in leaf.items()}
    whole = Option(
        "", 0, -1, 1, (REPLICATE,) * len(declared.inputs), (REPLICATE,) * len(declared.outputs)
    )
    options = [whole]
    for loop in declared.loops:
        if loop.kind == "whole":
            continue
        joint = loop.kind == "joint"
        absent = REPLICATE if joint else PARTIAL
        for part, size in enumerate(parts[loop.name]):
            cut = ((loop.name, part),)
            inputs = tuple(_state(dims, cut, leaf, REPLICATE) for dims in declared.inputs)
            outputs = tuple(_state(dims, cut, leaf, absent) for dims in declared.outputs)
            mean = loop.kind == "mean"
            atom = leaf[loop.name][part]
            options.append(Option(loop.name, part, atom, size, inputs, outputs, mean, joint=joint))
    for one, other in declared.pairs:
        options += _paired(declared, one, other, parts, leaf)
    for group in declared.linear:
        inputs = tuple(PARTIAL if i in group else REPLICATE for i in range(len(declared.inputs)))
        options.append(Option("", 0, -1, 1, inputs, (PARTIAL,) * len(declared.outputs)))
    return OpAxes(declared, parts, tuple(options))


def _paired(
    declared: Loops,
    one: str,
    other: str,
    parts: dict[str, tuple[int, ...]],
    leaf: dict[str, list[int]],
) -> list[Option]:
    """One axis splits a factor of both loops: a tensor is cut along the one that it carries."""
    found = []
    for i, size in enumerate(parts[one]):
        for j, ways in enumerate(parts[other]):
            cuts = ((one, i), (other, j))
            inputs = tuple(_state(dims, cuts, leaf, REPLICATE) for dims in declared.inputs)
            outputs = tuple(_state(dims, cuts, leaf, REPLICATE) for dims in declared.outputs)
            atom, common = leaf[one][i], gcd(size, ways)
            found.append(Option(one, i, atom, common, inputs, outputs, partner=cuts[1]))
    return found


def _state(
    dims: Dims, cuts: tuple[tuple[str, int], ...], leaf: dict[str, list[int]], absent: State
) -> State:
    """Where a tensor carries the first of these factors: (dim, position among the dim's factors)."""
    for loop, part in cuts:
        for position, dim in enumerate(dims):
            before = 0
            for name in dim:
                if name == loop:
                    return (position, before + part)
                before += len(leaf[name])
    return absent
