"""Redistribution of tensors from the shards of one program to those of another (HotSPa).

A rank's shard of a tensor is a set of boxes: its layout selects a product of index ranges, one per
dimension, and a flat shard of that is a few boxes of rows. A rank receives its new boxes less their
intersections with the old ones, each element once, from the rank that has sent least so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import msgspec

from ..errors import MismatchError
from ..model.layout import Layout, local_factors
from ..model.mesh import Mesh
from ..model.tensor import ITEM_BYTES
from ..plan.program import ParameterSpec, ProgramTable
from ..plan.strategy import ROLES, ZERO_ROLES

Ranges = tuple[tuple[int, int], ...]  # of one dimension's indices: disjoint, in order
Box = tuple[Ranges, ...]  # by dimension
VALUES, STEPPED = (
    1,
    len(ZERO_ROLES),
)  # levels of flat sharding: of values, of what the optimizer steps


class RedistributionBytes(msgspec.Struct, frozen=True):
    """Bytes that every rank must receive, of parameters on the way to a plan and of gradients back."""

    parameters: tuple[int, ...]
    gradients: tuple[int, ...]

    @property
    def by_rank(self) -> tuple[int, ...]:
        """Parameters and gradients together."""
        return tuple(map(sum, zip(self.parameters, self.gradients, strict=True)))

    @property
    def worst_rank(self) -> int:
        """The rank that receives most; the first of several."""
        return max(range(len(self.by_rank)), key=self.by_rank.__getitem__)


class ShardLevels(NamedTuple):
    """How many zero axes shard a tensor, in the program that has it and in the one that wants it."""

    source: int
    target: int


class Movement(NamedTuple):
    """A box of a tensor that `receiver` needs and `sender` has, perhaps the same rank."""

    name: str
    sender: int
    receiver: int
    box: Box


def redistribution_bytes(first: ProgramTable, other: ProgramTable) -> RedistributionBytes:
    """Bytes that ranks which train under `first` must receive to run a batch under `other`: parameters
    before it, and gradients of what the optimizer steps on after it.

    Raises MismatchError unless both have the same parameters and number of ranks.
    """
    before, after = parameters_of(first), parameters_of(other)
    if {n: h.type for n, h in before.items()} != {n: h.type for n, h in after.items()}:
        raise MismatchError(f"{first.model} and {other.model} have other parameters")
    if first.mesh.size != other.mesh.size:
        raise MismatchError(f"{first.mesh.size} and {other.mesh.size} ranks cannot switch")
    parameters, gradients = [0] * first.mesh.size, [0] * first.mesh.size
    pairs = Counter((before[name], spec) for name, spec in after.items())
    for (home, away), count in pairs.items():
        elements = max(1, prod(away.type.shape))
        _count(first, home, other, away, VALUES, count * away.type.bytes // elements, parameters)
        if away.trainable:
            item = count * ITEM_BYTES[first.stepped_dtype(home)]
            _count(other, away, first, home, STEPPED, item, gradients)
    return RedistributionBytes(tuple(parameters), tuple(gradients))


def parameters_of(table: ProgramTable) -> dict[str, ParameterSpec]:
    """Where parameters lie, by name; specs of tensors that lie alike are equal."""
    return {
        name: msgspec.structs.replace(
            spec, name="", count=1, partial_axes=(), aliases=(), values=None
        )
        for spec in table.state_tensors
        if spec.kind == "parameter"
        for name in spec.names()
    }


def reordered(table: ProgramTable, orders: Mapping[str, tuple[int, ...]]) -> ProgramTable:
    """The table of a program in which these tensors have another `order`."""
    specs = list[ParameterSpec]()
    for spec in table.state_tensors:
        if orders.keys().isdisjoint(spec.names()):
            specs.append(spec)
            continue
        for name in spec.names():
            order = orders.get(name, spec.order)
            specs.append(msgspec.structs.replace(spec, name=name, count=1, order=order))
    return msgspec.structs.replace(table, state_tensors=tuple(specs))


def _count(
    old: ProgramTable,
    source: ParameterSpec,
    new: ProgramTable,
    target: ParameterSpec,
    levels: int,
    item_bytes: int,
    into: list[int],
) -> None:
    """Add the bytes of one tensor that every rank must receive."""
    for rank in range(new.mesh.size) if item_bytes else ():
        needed = local_boxes(new, target, rank, levels)
        _, lacking = _divided(needed, local_boxes(old, source, rank, levels))
        into[rank] += item_bytes * sum(map(_elements, lacking))


def movements(
    old: ProgramTable, new: ProgramTable, names: Iterable[str], levels: ShardLevels
) -> list[Movement]:
    """Who sends which box of tensors to whom, so that the ranks of `old` have what `new` needs.

    Every rank gets what it lacks once, and keeps what it has. Among the ranks that have a box the one
    that has sent least sends it, large tensors first; the answer is the same wherever it is computed.
    """
    specs = {name: spec for spec in old.state_tensors for name in spec.names()}
    wanted = {name: spec for spec in new.state_tensors for name in spec.names()}
    sent = [0] * old.mesh.size
    moves: list[Movement] = []
    for name in sorted(names, key=lambda n: (-wanted[n].type.bytes, n)):
        there = [local_boxes(old, specs[name], r, levels.source) for r in range(old.mesh.size)]
        needed = [local_boxes(new, wanted[name], r, levels.target) for r in range(new.mesh.size)]
        moves += movements_of(name, there, needed, sent)
    return moves


def movements_of(
    name: str, there: Sequence[tuple[Box, ...]], needed: Sequence[tuple[Box, ...]], sent: list[int]
) -> Iterator[Movement]:
    """Who sends which box of one tensor to whom, from what every rank has `there` to what it needs;
    adds up what ranks have `sent`. Raises MismatchError for what no rank has."""
    holders: dict[tuple[Box, ...], list[int]] = {}
    for rank, boxes in enumerate(there):
        holders.setdefault(boxes, []).append(rank)
    for rank, wanted in enumerate(needed):
        yield from _received(name, rank, wanted, there[rank], holders, sent)


def disjoint(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """The same elements, each in one box alone."""
    apart: tuple[Box, ...] = ()
    for box in boxes:
        _, rest = _divided((box,), apart)
        apart += rest
    return apart


def lacking(needed: tuple[Box, ...], there: Iterable[Box]) -> tuple[Box, ...]:
    """What of some boxes lies in none of the others."""
    return _divided(needed, tuple(there))[1]


def _received(
    name: str,
    receiver: int,
    needed: tuple[Box, ...],
    there: tuple[Box, ...],
    holders: dict[tuple[Box, ...], list[int]],
    sent: list[int],
) -> Iterator[Movement]:
    """The movements of one tensor to one rank; adds up what ranks have `sent`."""
    local, lacking = _divided(needed, there)
    yield from (Movement(name, receiver, receiver, box) for box in local)
    least = {boxes: min(ranks, key=sent.__getitem__) for boxes, ranks in holders.items()}
    for boxes, sender in sorted(least.items(), key=lambda item: sent[item[1]]):
        if not lacking:
            return
        common, lacking = _divided(lacking, boxes)
        for box in common:
            sent[sender] += _elements(box)
            yield Movement(name, sender, receiver, box)
    if lacking:
        raise MismatchError(f"{name}: no rank has {lacking[0]} of it")


@lru_cache(1 << 14)
def _divided(
    needed: tuple[Box, ...], there: tuple[Box, ...]
) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """What of some boxes lies in others, and what does not."""
    common: list[Box] = []
    for other in there:
        rest: list[Box] = []
        for box in needed:
            shared = tuple(map(_common, box, other))
            if all(shared):
                common.append(shared)
                rest += _without(box, shared)
            else:
                rest.append(box)
        needed = tuple(rest)
    return tuple(common), needed


def _without(box: Box, inner: Box) -> Iterator[Box]:
    """A box less one inside it, as boxes: dimension by dimension, what lies outside in it."""
    for dim, (ranges, inside) in enumerate(zip(box, inner, strict=True)):
        if outside := _outside(ranges, inside):
            yield (*inner[:dim], outside, *box[dim + 1 :])


def local_boxes(
    table: ProgramTable, spec: ParameterSpec, rank: int, levels: int
) -> tuple[Box, ...]:
    """A rank's shard of a tensor after the first `levels` of the zero axes: one for the parameter, all
    three for its optimizer states."""
    mesh = table.meshes[spec.mesh]
    place = mesh.coordinate(rank)
    if _stage(mesh, place) not in spec.stages:
        return ()
    return _boxes_at(spec, mesh, place, levels)


def _stage(mesh: Mesh, place: tuple[int, ...]) -> int:
    return sum(at for axis, at in zip(mesh.axes, place, strict=True) if ROLES[axis.name].stages)


@lru_cache(1 << 14)
def _boxes_at(
    spec: ParameterSpec, mesh: Mesh, place: tuple[int, ...], levels: int
) -> tuple[Box, ...]:
    axes = {axis.name: (axis.size, at) for axis, at in zip(mesh.axes, place, strict=True)}
    zero_axes = [axes.get(name, (1, 0)) for name in ZERO_ROLES]
    whole_from = 0 if spec.kind != "parameter" else len(ZERO_ROLES) if spec.trainable else 1
    zero_axes[whole_from:] = [(1, 0)] * (len(ZERO_ROLES) - whole_from)
    shape = tuple(prod(dim) for dim in local_factors(spec.factors, spec.layout, mesh))
    ranges = tuple(_ranges(spec, mesh, place, dim) for dim in range(len(shape)))
    (p, g, o), (i, j, k) = zip(*zero_axes, strict=True)
    flat = spec.flat_shard(shape, (p, g, o))
    return tuple(
        tuple(tuple(sorted(_within(dim, *rows))) for dim, rows in zip(ranges, box, strict=True))
        for first, last in flat.ranges((i, j, k), levels)
        for box in _boxes(shape, first, last)
    )


def _ranges(spec: ParameterSpec, mesh: Mesh, place: tuple[int, ...], dim: int) -> Ranges:
    """Index ranges of one dimension at a mesh coordinate, from the digits of its factors, in the order
    in which they lie there."""
    digits = [(0, size) for size in spec.factors[dim]]
    layout: Layout = spec.layout
    for state, axis, at in zip(layout, mesh.axes, place, strict=True):
        if isinstance(state, tuple) and state[0] == dim:
            first, size = digits[state[1]]
            digits[state[1]] = first + at * (size // axis.size), size // axis.size
    ranges: Ranges = ((0, 1),)
    inner = 1
    for (first, size), factor in zip(reversed(digits), reversed(spec.factors[dim]), strict=True):
        if ranges == ((0, inner),):
            ranges = ((first * inner, (first + size) * inner),)
        else:
            ranges = tuple(
                (digit * inner + a, digit * inner + b)
                for digit in range(first, first + size)
                for a, b in ranges
            )
        inner *= factor
    if spec.order and dim == 0:
        return tuple((i, i + 1) for a, b in ranges for i in spec.order[a:b])
    return ranges


def _within(ranges: Ranges, first: int, last: int) -> Ranges:
    """The `first` to `last - 1`-th of the indices in ranges."""
    selected, passed = list[tuple[int, int]](), 0
    for a, b in ranges:
        low, high = max(first, passed), min(last, passed + b - a)
        if low < high:
            selected.append((a + low - passed, a + high - passed))
        passed += b - a
    return tuple(selected)


def _boxes(shape: tuple[int, ...], first: int, last: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The elements `first` to `last - 1` in row-major order, as boxes: part of a row, full rows,
    part of a row."""
    if first >= last:
        return
    if not shape:
        yield ()
        return
    inner = prod(shape[1:])
    begin, end = -(-first // inner), last // inner
    full = tuple((0, size) for size in shape[1:])
    if first < begin * inner:
        row = begin - 1
        for box in _boxes(shape[1:], first - row * inner, min(last - row * inner, inner)):
            yield ((row, begin), *box)
    if begin < end:
        yield ((begin, end), *full)
    if end * inner < last and end >= begin:
        for box in _boxes(shape[1:], 0, last - end * inner):
            yield ((end, end + 1), *box)


def _elements(box: Box) -> int:
    return prod(sum(b - a for a, b in ranges) for ranges in box)


@lru_cache(1 << 14)
def _common(one: Ranges, other: Ranges) -> Ranges:
    """The indices that two sets of ranges have in common."""
    i = j = 0
    shared: list[tuple[int, int]] = []
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low < high:
            shared.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(shared)


def _outside(ranges: Ranges, inside: Ranges) -> Ranges:
    """Ranges less some inside them."""
    rest: list[tuple[int, int]] = []
    for first, last in ranges:
        at = first
        for a, b in inside:
            if first <= a and b <= last:
                rest += [(at, a)] if at < a else []
                at = b
        rest += [(at, last)] if at < last else []
    return tuple(rest)
