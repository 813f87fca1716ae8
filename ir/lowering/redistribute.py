"""From the layout of one program to that of another: what every rank must receive (HotSPa's switch).

A rank's share of a tensor is a set of boxes: the cut of its layout is a product of ranges of every
dimension's indices, and a flat piece of that is a few boxes of rows. What a rank lacks are the new
boxes less their intersections with the old ones, counted exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from math import prod

import msgspec

from ..errors import MismatchError
from ..layout import Layout, local_factors
from ..mesh import Mesh
from ..plan.flat_shard import Flat
from ..plan.plan import Optimizer
from ..plan.strategy import LEVELS, ROLES
from ..program import Held, Table

Ranges = tuple[tuple[int, int], ...]  # of one dimension's indices: disjoint, in order
Box = tuple[Ranges, ...]  # by dimension


class Received(msgspec.Struct, frozen=True):
    """Bytes that every rank lacks, of parameters and of optimizer states."""

    parameters: tuple[int, ...]
    optimizer: tuple[int, ...]

    @property
    def by_rank(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.parameters, self.optimizer, strict=True)))

    @property
    def worst_rank(self) -> int:
        """The first of those that lack most."""
        return max(range(len(self.by_rank)), key=self.by_rank.__getitem__)


def received(old: Table, new: Table, optimizer: Optimizer) -> Received:
    """What ranks that run `old` lack to run `new`. Raises MismatchError unless both have the same
    parameters on as many ranks."""
    before, after = _parameters(old), _parameters(new)
    if {n: h.type for n, h in before.items()} != {n: h.type for n, h in after.items()}:
        raise MismatchError(f"{old.model} and {new.model} have other parameters")
    if old.mesh.size != new.mesh.size:
        raise MismatchError(f"{old.mesh.size} and {new.mesh.size} ranks cannot switch")
    parameters, states = [0] * new.mesh.size, [0] * new.mesh.size
    alike = Counter((before[name], held) for name, held in after.items())
    for (source, target), count in alike.items():
        item = count * target.type.bytes // max(1, prod(target.type.shape))
        state = count * optimizer.states * optimizer.state_bytes if target.trainable else 0
        _count(old, source, new, target, 1, item, parameters)
        _count(old, source, new, target, len(LEVELS), state, states)
    return Received(tuple(parameters), tuple(states))


def _parameters(table: Table) -> dict[str, Held]:
    return {
        name: msgspec.structs.replace(held, name="", count=1, sums=(), aliases=(), values=None)
        for held in table.held
        if held.kind == "parameter"
        for name in held.names()
    }


def _count(
    old: Table, source: Held, new: Table, target: Held, cuts: int, item_bytes: int, into: list[int]
) -> None:
    """Add the bytes of one tensor that every rank lacks."""
    lacked = cache(_lacked)
    for rank in range(new.mesh.size) if item_bytes else ():
        needed = share(new, target, rank, cuts)
        into[rank] += item_bytes * lacked(needed, share(old, source, rank, cuts))


def _lacked(needed: tuple[Box, ...], there: tuple[Box, ...]) -> int:
    common = sum(prod(map(_common, a, b)) for a in needed for b in there)
    return sum(map(_elements, needed)) - common


def share(table: Table, held: Held, rank: int, cuts: int) -> tuple[Box, ...]:
    """What a rank keeps of a tensor after the first `cuts` flat cuts: of its value after one, of what
    the optimizer keeps after all three."""
    mesh = table.meshes[held.mesh]
    place = mesh.coordinate(rank)
    if _stage(mesh, place) not in held.stages:
        return ()
    return _share(held, mesh, place, cuts)


def _stage(mesh: Mesh, place: tuple[int, ...]) -> int:
    return sum(at for axis, at in zip(mesh.axes, place, strict=True) if ROLES[axis.name].stages)


@lru_cache(1 << 14)
def _share(held: Held, mesh: Mesh, place: tuple[int, ...], cuts: int) -> tuple[Box, ...]:
    axes = {axis.name: (axis.size, at) for axis, at in zip(mesh.axes, place, strict=True)}
    levels = [axes.get(name, (1, 0)) for name in LEVELS]
    if not held.trainable:
        levels[1:] = [(1, 0), (1, 0)]
    shape = tuple(prod(dim) for dim in local_factors(held.factors, held.layout, mesh))
    ranges = tuple(_ranges(held, mesh, place, dim) for dim in range(len(shape)))
    (p, g, o), (i, j, k) = zip(*levels, strict=True)
    flat = Flat(prod(shape), (p, g, o), held.fraction)
    return tuple(
        tuple(_within(dim, *rows) for dim, rows in zip(ranges, box, strict=True))
        for first, last in flat.ranges((i, j, k), cuts)
        for box in _boxes(shape, first, last)
    )


def _ranges(held: Held, mesh: Mesh, place: tuple[int, ...], dim: int) -> Ranges:
    """The indices of one dimension that a place keeps: its factors' digits, cut by cut."""
    digits = [(0, size) for size in held.factors[dim]]
    layout: Layout = held.layout
    for state, axis, at in zip(layout, mesh.axes, place, strict=True):
        if isinstance(state, tuple) and state[0] == dim:
            first, size = digits[state[1]]
            digits[state[1]] = first + at * (size // axis.size), size // axis.size
    found: Ranges = ((0, 1),)
    inner = 1
    for (first, size), whole in zip(reversed(digits), reversed(held.factors[dim]), strict=True):
        if found == ((0, inner),):
            found = ((first * inner, (first + size) * inner),)
        else:
            found = tuple(
                (digit * inner + a, digit * inner + b)
                for digit in range(first, first + size)
                for a, b in found
            )
        inner *= whole
    return found


def _within(ranges: Ranges, first: int, last: int) -> Ranges:
    """The `first` to `last - 1`-th of the indices in ranges."""
    found, passed = [], 0
    for a, b in ranges:
        low, high = max(first, passed), min(last, passed + b - a)
        if low < high:
            found.append((a + low - passed, a + high - passed))
        passed += b - a
    return tuple(found)


def _boxes(shape: tuple[int, ...], first: int, last: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The elements `first` to `last - 1` in row-major order, as boxes: part of a row, whole rows,
    part of a row."""
    if first >= last:
        return
    if not shape:
        yield ()
        return
    inner = prod(shape[1:])
    begin, end = -(-first // inner), last // inner
    whole = tuple((0, size) for size in shape[1:])
    if first < begin * inner:
        row = begin - 1
        for box in _boxes(shape[1:], first - row * inner, min(last - row * inner, inner)):
            yield ((row, begin), *box)
    if begin < end:
        yield ((begin, end), *whole)
    if end * inner < last and end >= begin:
        for box in _boxes(shape[1:], 0, last - end * inner):
            yield ((end, end + 1), *box)


def _elements(box: Box) -> int:
    return prod(sum(b - a for a, b in ranges) for ranges in box)


@lru_cache(1 << 14)
def _common(one: Ranges, other: Ranges) -> int:
    """How many indices two sets of ranges share."""
    i = j = total = 0
    while i < len(one) and j < len(other):
        total += max(0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total
