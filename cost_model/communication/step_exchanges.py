"""Sums of a step beside those over batch axes: rows of tables, and weights that two stages train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod

from ...ir.plan.program import LEAST_BUCKET_BYTES
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import StageBytes
from .exchange import Exchange, GroupAxis


def row_gathers(row_bytes: int, batch_axes: Sequence[GroupAxis]) -> Iterator[Exchange]:
    """Gathers of the rows that a step reads of tables, axis by axis, to all ranks that read some."""
    axes = batch_axes if row_bytes else batch_axes[:0]
    remaining = prod(axis.size for axis in axes)
    for axis in axes:
        remaining //= axis.size
        yield Exchange(None, "all_gather", row_bytes / remaining, [axis])


def stage_pairs(strategy: Strategy) -> list[GroupAxis]:
    """The axis along which two stages share weights, half of all stages apart in the mean."""
    axes = [(role, n, strategy.stride(role)) for role, n in strategy.axes if ROLES[role].stages]
    return [GroupAxis(role, 2, stride * n // 2) for role, n, stride in axes if n > 1]


def pair_reductions(
    weights: StageBytes, part: float, pairs: Sequence[GroupAxis]
) -> Sequence[Exchange]:
    """The sums of gradients that two stages have of the same weights, of which a rank has a `part`: by
    tensor, small ones together."""
    amount = weights.tied_bytes * part
    if not amount:
        return ()
    messages = ceil(amount / max(LEAST_BUCKET_BYTES, weights.largest_weight_bytes * part))
    return (Exchange(None, "all_reduce", amount, pairs, messages),)
