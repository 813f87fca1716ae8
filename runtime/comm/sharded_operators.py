"""Operators that depend on the position of their shard, or reduce over mesh axes themselves.

Generated code calls them as `comm.<name>`. Most are plait's own operators with the
offsets of their shards filled in. With `over`, the operator is sharded along a loop that its result
reduces: it communicates over those axes itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...ir.capture import resolve as _resolve  # noqa: F401  (registers our operators)
from ...ir.capture.operators.elementary import exponentials_total, label_logits, widened
from ...ir.capture.operators.shard_offsets import to_local_positions
from .expert_all_to_all import ExpertSlots, FindCentroids, experts, experts_backward, owner_of
from .group_hierarchy import DirectRoute, RowRoute

OPS = torch.ops.plait
ShardFactors = (
    Any  # factors (local size, stride in the full tensor, axes that shard it), outermost first
)


class ShardedOperators:
    """Operators of one rank. Subclasses give `sizes`, `coordinates` and collectives over mesh axes."""

    sizes: dict[str, int]
    coordinates: dict[str, int]
    expert_slots: ExpertSlots | None = None  # of the call that runs, with replicas of its experts
    centroids: Mapping[str, FindCentroids] = MappingProxyType({})  # by axis of compressed rows

    @cached_property
    def row_requests(self) -> dict[tuple[int, str, str], tuple[Tensor, RowRequests]]:
        """What forward has asked for, with the look-ups, until backward sends the gradients there."""
        return {}

    def asking(self, axis: str, indices: Tensor, rows: ShardFactors) -> RowRequests:
        """The requests of look-ups in forward; once for all tables that lie alike."""
        key = id(indices), axis, str(rows)
        if key not in self.row_requests:
            self.row_requests[key] = indices, RowRequests(self, axis, indices, rows)
        return self.row_requests[key][1]

    def asked_before(self, axis: str, indices: Tensor, rows: ShardFactors) -> RowRequests:
        """The requests of forward, which backward needs no more; new ones if it kept another copy of the
        look-ups, on all ranks alike."""
        known = self.row_requests.pop((id(indices), axis, str(rows)), None)
        return RowRequests(self, axis, indices, rows) if known is None else known[1]

    def sum_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        raise NotImplementedError

    def max_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        raise NotImplementedError

    def exchange_rows(self, x: Tensor, axis: str, sent: list[int], received: list[int]) -> Tensor:
        """All-to-all of rows: `sent` of them to each rank of the axis in order; gives those received."""
        raise NotImplementedError

    def row_route(self, axis: str, counts: Tensor) -> RowRoute:
        """The way of rows, of which `counts` go to each rank of an axis in order."""
        return DirectRoute(lambda x, *amounts: self.exchange_rows(x, axis, *amounts), counts)

    def note_choices(self, choice: Tensor, experts: int) -> None:
        """Take note of the experts that tokens chose (`[tokens, choices]`, of so many experts)."""

    def shard_offsets(self, factors: ShardFactors) -> list[int]:
        """Flat triples (size, stride, start) of shard factors."""
        triples: list[int] = []
        for size, stride, axes in factors:
            position = 0
            for axis in axes:
                position = position * self.sizes[axis] + self.coordinates[axis]
            triples += [size, stride, position * size]
        return triples

    def with_offsets(self, args: tuple[object, ...]) -> list[object]:
        """Arguments with shard factors replaced by their offsets."""
        return [self.shard_offsets(arg) if _are_shard_factors(arg) else arg for arg in args]

    def dropout(self, *args: object) -> Tensor:
        """`plait::dropout` of a shard: its slice of the full tensor's mask."""
        return OPS.dropout(*self.with_offsets(args))

    def uniform(self, *args: object) -> Tensor:
        """`plait::uniform` of a shard: its part of the whole tensor's numbers."""
        return OPS.uniform(*self.with_offsets(args))

    def attention(self, *args: object, over: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
        """`plait::attention` of a shard. With the keys sharded over axes, every rank attends to its
        own keys, and results are weighted by their share of the softmax denominator."""
        out, logsumexp = OPS.attention(*self.with_offsets(args))
        if not over:
            return out, logsumexp
        peak = self.max_over(logsumexp, over)
        weight = torch.exp(logsumexp - torch.where(peak.isneginf(), 0.0, peak))
        total = self.sum_over(weight, over)
        scaled = torch.where(weight.unsqueeze(-1) > 0, out * weight.unsqueeze(-1), 0.0)
        combined = self.sum_over(scaled, over) / torch.where(total > 0, total, 1.0).unsqueeze(-1)
        return combined.to(out.dtype), peak + total.log()

    def attention_backward(self, *args: object) -> tuple[Tensor, ...]:
        """The gradients of `attention`."""
        return OPS.attention_backward(*self.with_offsets(args))

    def attention_backward_bias(self, *args: object) -> tuple[Tensor, ...]:
        """The gradients of `attention`, and of its bias."""
        return OPS.attention_backward_bias(*self.with_offsets(args))

    def embedding(
        self,
        table: Tensor,
        indices: Tensor,
        rows: ShardFactors,
        *_: object,
        over: tuple[str, ...] = (),
    ) -> Tensor:
        """Rows of a shard of the table; zeros for rows of other ranks, which over an axis are asked for
        them."""
        asking = self.asking(over[0], indices, rows) if over else None
        local, here = to_local_positions(
            asking.asked if asking else indices, self.shard_offsets(rows)
        )
        result = table[local].mul_(here.unsqueeze(-1))
        return asking.answers(result, indices) if asking else result

    def embedding_dense_backward(
        self,
        gradient: Tensor,
        indices: Tensor,
        count: int,
        padding: int,
        scaled: bool,
        rows: ShardFactors,
        over: tuple[str, ...] = (),
    ) -> Tensor:
        """The gradient of a shard of the table."""
        gradient, indices = self.totals_of_rows(gradient, indices, padding, rows, over)
        local, here = to_local_positions(indices, self.shard_offsets(rows))
        result = gradient.new_zeros(count, gradient.shape[-1])
        used = here & (indices != padding)
        rows_of = (gradient * used.unsqueeze(-1)).reshape(-1, gradient.shape[-1])
        return result.index_add_(0, local.reshape(-1), rows_of)

    def totals_of_rows(
        self,
        gradient: Tensor,
        indices: Tensor,
        padding: int,
        rows: ShardFactors,
        over: tuple[str, ...],
    ) -> tuple[Tensor, Tensor]:
        """Gradients of look-ups, and their places: over an axis, sums by row of those that other ranks
        made of rows of this one."""
        if not over:
            return gradient, indices
        used = (indices != padding).unsqueeze(-1)
        asking = self.asked_before(over[0], indices, rows)
        return asking.sent_totals(gradient * used, indices), asking.asked

    def embedding_sparse_backward(
        self,
        gradient: Tensor,
        indices: Tensor,
        count: int,
        padding: int,
        _: bool,
        rows: ShardFactors,
        over: tuple[str, ...] = (),
    ) -> Tensor:
        """The gradient of a shard of the table (sparse): of the rows that were read and lie there."""
        gradient, indices = self.totals_of_rows(gradient, indices, padding, rows, over)
        local, here = to_local_positions(indices, self.shard_offsets(rows))
        used = (here & (indices != padding)).reshape(-1)
        places, values = local.reshape(-1)[used], gradient.reshape(used.numel(), -1)[used]
        shape = (count, values.shape[-1])
        return torch.sparse_coo_tensor(places[None], values, shape, check_invariants=False)

    def cross_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore: int,
        classes: ShardFactors,
        *,
        over: tuple[str, ...],
    ) -> tuple[Tensor, Tensor]:
        """Losses and logsumexp of rows whose classes are sharded over several ranks."""
        peak = self.max_over(widened(logits.amax(-1)), over)
        valid = labels != ignore
        scores = label_logits(logits, labels, valid, self.shard_offsets(classes))
        exponents = exponentials_total(logits, peak)
        total, score = self.sum_over(torch.stack([exponents, scores]), over)
        logsumexp = total.log() + peak
        return torch.where(valid, logsumexp - score, 0.0).to(logits.dtype), logsumexp

    def cross_entropy_backward(self, *args: object) -> Tensor:
        """The gradient of a shard of the logits."""
        return OPS.cross_entropy_backward(*self.with_offsets(args))

    def experts(self, *args: Any, over: tuple[str, ...] = ()) -> Tensor:
        """`plait::experts` with a shard of the experts; over an axis, of tokens and experts."""
        if not over:
            return OPS.experts(*self.with_offsets(args))
        return experts(self, over, *args)

    def experts_backward(self, *args: Any, over: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        """The gradients of `experts`."""
        if not over:
            return OPS.experts_backward(*self.with_offsets(args))
        return experts_backward(self, over, *args)

    def experts_backward_bias(self, *args: Any, over: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        """The gradients of `experts`, and of its bias."""
        if not over:
            return OPS.experts_backward_bias(*self.with_offsets(args))
        return experts_backward(self, over, *args)


class RowRequests:
    """Look-ups of rows of a table that the ranks of an axis have apart: each asks once for every row
    that it reads. `asked` are those that this rank is asked for, by their place in the whole table."""

    def __init__(
        self, ranks: ShardedOperators, axis: str, indices: Tensor, rows: ShardFactors
    ) -> None:
        distinct = indices.unique()
        owner = owner_of(distinct, rows, axis, ranks.sizes)
        self.order = torch.argsort(owner, stable=True)
        self.route = ranks.row_route(axis, torch.bincount(owner, minlength=ranks.sizes[axis]))
        self.asked = self.route.there(distinct[self.order])

    def answers(self, rows: Tensor, indices: Tensor) -> Tensor:
        """The row of every look-up, from those that this rank was asked for."""
        arrived = self.route.back(rows)
        distinct = torch.empty_like(arrived)
        distinct[self.order] = arrived
        return distinct[places_of(indices)]

    def sent_totals(self, gradient: Tensor, indices: Tensor) -> Tensor:
        """The sums of gradients of look-ups, by row, that ranks have of the rows in `asked`."""
        totals = gradient.new_zeros(len(self.order), gradient.shape[-1])
        places = places_of(indices).reshape(-1)
        totals.index_add_(0, places, gradient.reshape(-1, gradient.shape[-1]))
        return self.route.there(totals[self.order])


def places_of(indices: Tensor) -> Tensor:
    """Where each look-up is among the distinct ones, in order; as large as they, so worked out again."""
    return indices.unique(return_inverse=True)[1]


def _are_shard_factors(arg: object) -> bool:
    return (
        isinstance(arg, list | tuple)
        and len(arg) > 0
        and all(isinstance(f, list | tuple) and len(f) == 3 for f in arg)
        and all(isinstance(f[2], list | tuple) for f in arg)
    )
