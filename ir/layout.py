"""Layouts: how one tensor lies on a mesh, and the collectives that turn one layout into another.

Per mesh axis a tensor is whole on every rank (`R`), a partial sum (`P`), or cut along one factor of
one of its dimensions (`(dim, part)`). A dimension's factors are the loops it walks, outermost first,
so `(1, 2)` of a `[h (3 n d)]` weight cuts every head's columns. Two axes on one factor nest, the
axis that comes first in the mesh outside.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import msgspec

from .errors import PlaitError
from .mesh import Mesh
from .tensor import TensorType

Shard = tuple[int, int]
State = Literal["R", "P"] | Shard
Layout = tuple[State, ...]
Factors = tuple[tuple[int, ...], ...]

REPLICATE: State = "R"
PARTIAL: State = "P"


class UnreachableLayout(PlaitError):
    """A tensor cannot be brought into a layout: its sum or its pieces lie in time."""


class Step(msgspec.Struct, frozen=True):
    """One collective over one mesh axis; `source` and `target` are that axis' states.

    `cut` and `share` (every rank takes an equal part of the sum) move nothing.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"]
    axis: int
    source: State
    target: State
    before: Layout
    after: Layout


Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"]
# fmt: off
KINDS: dict[tuple[str, str], Kind] = {
    ("P", "R"): "all_reduce", ("S", "R"): "all_gather", ("P", "S"): "reduce_scatter",
    ("S", "S"): "all_to_all", ("R", "S"): "cut", ("R", "P"): "share",
}
# fmt: on


def is_shard(state: State) -> bool:
    return isinstance(state, tuple)


def local_factors(factors: Factors, layout: Layout, mesh: Mesh) -> Factors:
    """Factors of one rank's piece; every cut must divide its factor."""
    pieces = [list(dim) for dim in factors]
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            dim, part = state
            assert pieces[dim][part] % axis.size == 0, f"{factors} cut as {layout} on {mesh}"
            pieces[dim][part] //= axis.size
    return tuple(tuple(dim) for dim in pieces)


def local_type(type_: TensorType, factors: Factors, layout: Layout, mesh: Mesh) -> TensorType:
    return TensorType(tuple(prod(d) for d in local_factors(factors, layout, mesh)), type_.dtype)


def along(factors: Factors, layout: Layout, mesh: Mesh, shard: Shard) -> tuple[int, int]:
    """(dim, number of elements of it outside the cut factor) in the local tensor."""
    dim, part = shard
    return dim, prod(local_factors(factors, layout, mesh)[dim][:part])


def fits(factors: Factors, layout: Layout, mesh: Mesh) -> bool:
    """Whether every cut divides its factor."""
    ways: dict[Shard, int] = {}
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            ways[state] = ways.get(state, 1) * axis.size
    return all(factors[dim][part] % n == 0 for (dim, part), n in ways.items())


def transition(source: Layout, target: Layout) -> tuple[Step, ...]:
    """Collectives that turn `source` into `target`, in order."""
    current, steps = list(source), []
    while tuple(current) != target:
        axis, state = _next_step(current, target)
        if is_shard(current[axis]) and state == PARTIAL:
            state = REPLICATE
        kind = KINDS[_letter(current[axis]), _letter(state)]
        before = tuple(current)
        current[axis] = state
        steps.append(Step(kind, axis, before[axis], state, before, tuple(current)))
    return tuple(steps)


def _letter(state: State) -> str:
    return "S" if isinstance(state, tuple) else state


def _next_step(current: list[State], target: Layout) -> tuple[int, State]:
    """A direct step when one is legal, else undo a cut that stands in the way.

    A cut nests outside the later axes' cuts of the same factor, so those come off first and wait
    until it is made; and a factor that another axis is about to leave is not cut again before, for
    it might not divide.
    """
    blockers: list[int] = []
    behind = [i for i in range(len(target)) if current[i] != target[i]]
    for axis in behind:
        if is_shard(target[axis]) and any(target[i] == target[axis] for i in behind if i < axis):
            continue
        inner = [
            j
            for j in range(len(target))
            if j != axis
            and is_shard(current[j])
            and (
                (j > axis and current[j] in (current[axis], target[axis]))
                or (current[j] == target[axis] and current[j] != target[j])
            )
        ]
        if not inner:
            return axis, target[axis]
        blockers += inner
    return max(blockers), REPLICATE
