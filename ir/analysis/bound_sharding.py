"""A sharding bound to its function: names of operator splits resolved to the operators' options."""

from __future__ import annotations

import msgspec

from ..errors import MismatchError
from ..model.layout import Layout, Shard
from ..model.mesh import Mesh
from ..model.model import Function
from ..plan.sharding import Boundary, OpSplit, Sharding
from .axes import Axes, OpAxes, OpStrategy


class AtOnce(msgspec.Struct, frozen=True):
    """All micro-batches at once: a rank has its shard of every one, one after the other.

    Along the `batch` factors a shard is then no contiguous block of the global value: micro-batches are
    outside of what the mesh shards.
    """

    micro_batches: int
    batch: frozenset[int]

    def outermost(self, factor_ids: tuple[tuple[int, ...], ...]) -> Shard | None:
        """The (dim, factor index) where dims carry the batch first."""
        places = (
            (d, p) for d, dim in enumerate(factor_ids) for p, a in enumerate(dim) if a in self.batch
        )
        return next(places, None)


class BoundSharding(msgspec.Struct, frozen=True):
    """All that `localize` needs: `strategies[op][axis]` says what a mesh axis does to an operator.

    `at_once`: for a function that takes all micro-batches together.
    """

    function: Function
    axes: Axes
    mesh: Mesh
    strategies: tuple[tuple[OpStrategy, ...], ...]
    boundary: Boundary[Layout]
    at_once: AtOnce | None = None


def bind(sharding: Sharding, function: Function, axes: Axes) -> BoundSharding:
    """Resolve the names of a sharding; raises MismatchError for a split that does not exist."""
    strategies = resolve(sharding.op_splits, function, axes)
    return BoundSharding(function, axes, sharding.mesh, strategies, sharding.boundary)


def resolve(
    op_splits: tuple[tuple[OpSplit, ...], ...], function: Function, axes: Axes
) -> tuple[tuple[OpStrategy, ...], ...]:
    """The strategies of these names by operator and axis; raises MismatchError."""
    if len(op_splits) != len(function.ops):
        raise MismatchError(
            f"{function.name} has {len(function.ops)} operators, the sharding is of {len(op_splits)}"
        )
    return tuple(
        tuple(_option(split, number, function, known) for split in splits)
        for number, (splits, known) in enumerate(zip(op_splits, axes.ops, strict=True))
    )


def _option(split: OpSplit, number: int, function: Function, known: OpAxes) -> OpStrategy:
    option = known.option(split)
    if option is None:
        op = function.ops[number]
        where = f"operator {number} ({op.place()})"
        names = ", ".join(map(str, known.by_name))
        raise MismatchError(
            f"{function.name}: {where} has no split {str(split)!r}; there are: {names}"
        )
    return option
