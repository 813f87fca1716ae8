"""Redistribution of weights from one program to another: bytes that every rank must receive (HotSPa).

A rank's shard of a tensor is a set of boxes: its layout selects a product of index ranges, one per
dimension, and a flat shard of that is a few boxes of rows. A rank receives its new boxes less their
intersections with the old ones, counted exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from math import prod

import msgspec

from ..errors import MismatchError
from ..model.layout import Layout, local_factors
from ..model.mesh import Mesh
from ..plan.flat_shard import FlatShard
from ..plan.plan import Optimizer
from ..plan.program import ParameterSpec, ProgramTable
from ..plan.strategy import ROLES, ZERO_ROLES

Ranges = tuple[tuple[int, int], ...]  # of one dimension's indices: disjoint, in order
Box = tuple[Ranges, ...]  # by dimension


class RedistributionBytes(msgspec.Struct, frozen=True):
    """Bytes that every rank must receive, of parameters and of optimizer states."""

    parameters: tuple[int, ...]
    optimizer: tuple[int, ...]

    @property
    def by_rank(self) -> tuple[int, ...]:
        """Parameters and optimizer states together."""
        return tuple(map(sum, zip(self.parameters, self.optimizer, strict=True)))

    @property
    def worst_rank(self) -> int:
        """The rank that receives most; the first of several."""
        return max(range(len(self.by_rank)), key=self.by_rank.__getitem__)


def redistribution_bytes(
    old: ProgramTable, new: ProgramTable, optimizer: Optimizer
) -> RedistributionBytes:
    """Bytes that ranks of program `old` must receive to run `new`.

    Raises MismatchError unless both have the same parameters and number of ranks.
    """
    before, after = _parameters(old), _parameters(new)
    if {n: h.type for n, h in before.items()} != {n: h.type for n, h in after.items()}:
        raise MismatchError(f"{old.model} and {new.model} have other parameters")
    if old.mesh.size != new.mesh.size:
        raise MismatchError(f"{old.mesh.size} and {new.mesh.size} ranks cannot switch")
    parameters, states = [0] * new.mesh.size, [0] * new.mesh.size
    pairs = Counter((before[name], spec) for name, spec in after.items())
    for (source, target), count in pairs.items():
        item = count * target.type.bytes // max(1, prod(target.type.shape))
        state = count * optimizer.states * optimizer.state_bytes if target.trainable else 0
        _count(old, source, new, target, 1, item, parameters)
        _count(old, source, new, target, len(ZERO_ROLES), state, states)
    return RedistributionBytes(tuple(parameters), tuple(states))


def _parameters(table: ProgramTable) -> dict[str, ParameterSpec]:
    return {
        name: msgspec.structs.replace(
            spec, name="", count=1, partial_axes=(), aliases=(), values=None
        )
        for spec in table.state_tensors
        if spec.kind == "parameter"
        for name in spec.names()
    }


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
    lacked = cache(_lacked)
    for rank in range(new.mesh.size) if item_bytes else ():
        needed = local_boxes(new, target, rank, levels)
        into[rank] += item_bytes * lacked(needed, local_boxes(old, source, rank, levels))


def _lacked(needed: tuple[Box, ...], there: tuple[Box, ...]) -> int:
    common = sum(prod(map(_common, a, b)) for a in needed for b in there)
    return sum(map(_elements, needed)) - common


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
    if not spec.trainable:
        zero_axes[1:] = [(1, 0), (1, 0)]
    shape = tuple(prod(dim) for dim in local_factors(spec.factors, spec.layout, mesh))
    ranges = tuple(_ranges(spec, mesh, place, dim) for dim in range(len(shape)))
    (p, g, o), (i, j, k) = zip(*zero_axes, strict=True)
    flat = FlatShard(prod(shape), (p, g, o), spec.fraction)
    return tuple(
        tuple(_within(dim, *rows) for dim, rows in zip(ranges, box, strict=True))
        for first, last in flat.ranges((i, j, k), levels)
        for box in _boxes(shape, first, last)
    )


def _ranges(spec: ParameterSpec, mesh: Mesh, place: tuple[int, ...], dim: int) -> Ranges:
    """Index ranges of one dimension at a mesh coordinate, from the digits of its factors."""
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
def _common(one: Ranges, other: Ranges) -> int:
    """Number of indices that two sets of ranges have in common."""
    i = j = total = 0
    while i < len(one) and j < len(other):
        total += max(0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total
