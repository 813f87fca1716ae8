"""Layouts: the placement of a tensor on a mesh, and the collectives between two layouts.

Per mesh axis a tensor is replicated (`R`), a partial sum (`P`), or sharded along one factor of one of
its dimensions (`(dim, factor index)`). A dimension's factors are the loops it walks, outermost first,
so `(1, 2)` of a `[h (3 n d)]` weight shards the columns of every head. Two axes on one factor nest, the
axis that comes first in the mesh outside.
"""

from __future__ import annotations

from math import prod
from typing import Final, Literal

import msgspec

from ..errors import PlaitError
from ..ranges import Index
from .mesh import Mesh
from .tensor import TensorType

Shard = tuple[Index, Index]
AxisPlacement = Literal["R", "P"] | Shard
Layout = tuple[AxisPlacement, ...]
Factors = tuple[tuple[Index, ...], ...]

REPLICATE: Final[Literal["R"]] = "R"
PARTIAL: Final[Literal["P"]] = "P"


class UnreachableLayout(PlaitError):
    """A tensor cannot be resharded: its partial sums or shards are spread over time."""


class ReshardStep(msgspec.Struct, frozen=True):
    """One collective over one mesh axis; `source` and `target` are that axis' placements.

    `cut` (slice) and `share` (scale: every rank takes an equal part of a sum) move nothing.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"]
    axis: int
    source: AxisPlacement
    target: AxisPlacement
    before: Layout
    after: Layout


CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"]
# fmt: off
COLLECTIVE_KINDS: dict[tuple[str, str], CollectiveKind] = {
    ("P", "R"): "all_reduce", ("S", "R"): "all_gather", ("P", "S"): "reduce_scatter",
    ("S", "S"): "all_to_all", ("R", "S"): "cut", ("R", "P"): "share",
}
# fmt: on


def is_shard(state: AxisPlacement) -> bool:
    return isinstance(state, tuple)


def local_factors(factors: Factors, layout: Layout, mesh: Mesh) -> Factors:
    """Factors of one rank's shard; every shard degree must divide its factor."""
    local = [list(dim) for dim in factors]
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            dim, index = state
            assert local[dim][index] % axis.size == 0, f"{factors} cut as {layout} on {mesh}"
            local[dim][index] //= axis.size
    return tuple(tuple(dim) for dim in local)


def local_type(type_: TensorType, factors: Factors, layout: Layout, mesh: Mesh) -> TensorType:
    """Type of one rank's shard."""
    return TensorType(tuple(prod(d) for d in local_factors(factors, layout, mesh)), type_.dtype)


def shard_position(factors: Factors, layout: Layout, mesh: Mesh, shard: Shard) -> tuple[int, int]:
    """(dim, number of elements of it outside the sharded factor) in the local tensor."""
    dim, index = shard
    return dim, prod(local_factors(factors, layout, mesh)[dim][:index])


def divides_evenly(factors: Factors, layout: Layout, mesh: Mesh) -> bool:
    """Whether every shard degree divides its factor."""
    degrees: dict[Shard, int] = {}
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            degrees[state] = degrees.get(state, 1) * axis.size
    return all(factors[dim][index] % n == 0 for (dim, index), n in degrees.items())


def reshard_steps(source: Layout, target: Layout) -> tuple[ReshardStep, ...]:
    """Collectives that turn `source` into `target`, in order."""
    current: list[AxisPlacement] = list(source)
    steps: list[ReshardStep] = []
    while tuple(current) != target:
        axis, state = _next_step(current, target)
        if is_shard(current[axis]) and state == PARTIAL:
            state = REPLICATE
        kind = COLLECTIVE_KINDS[_letter(current[axis]), _letter(state)]
        before = tuple(current)
        current[axis] = state
        steps.append(ReshardStep(kind, axis, before[axis], state, before, tuple(current)))
    return tuple(steps)


def _letter(state: AxisPlacement) -> str:
    return "S" if isinstance(state, tuple) else state


def _next_step(current: list[AxisPlacement], target: Layout) -> tuple[int, AxisPlacement]:
    """A direct step when one is legal, else gather a shard that stands in the way.

    An axis' shards nest outside those of later axes on the same factor, so the later ones are gathered
    first and sharded again afterwards; and a factor that another axis is about to leave is not sharded
    before that, since it might not divide.
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
