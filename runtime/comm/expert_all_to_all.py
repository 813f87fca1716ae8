"""Expert parallelism: dispatches tokens to the ranks that hold their experts, combines the results.

Every rank of an axis has its own tokens and its own experts. A choice is one row: it is sent to the
owner of its expert, goes through the same operator there, and returns to its token. Over several
axes it is routing along one after the other. Where experts have replicas, choices of experts become
choices of slots first, which are then the experts that ranks have. Where rows are compressed, those
of one expert that are nearly equal travel as one (`CentroidRows`); their gradients are those of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...ir.errors import UsageError
from ...ir.plan.expert_placement import ExpertPlacement, slot_shares
from .group_hierarchy import RowRoute


class CentroidRows(NamedTuple):
    """Choices of experts by centroid of their rows: `rows` and `choice` of the centroids, and by choice,
    the token and the place of its centroid, of `counts` choices."""

    rows: Tensor
    choice: Tensor
    tokens: Tensor
    place: Tensor
    counts: Tensor


# of rows, their choices, and how many experts there are
FindCentroids = Callable[[Tensor, Tensor, int], CentroidRows]


class ExpertRanks(Protocol):
    """Operators and collectives of a rank that dispatch and combine call."""

    sizes: dict[str, int]
    coordinates: dict[str, int]
    expert_slots: ExpertSlots | None
    centroids: Mapping[str, FindCentroids]

    def experts(self, *args: Any, over: tuple[str, ...]) -> Tensor: ...

    def experts_backward(self, *args: Any, over: tuple[str, ...]) -> tuple[Tensor, ...]: ...

    def experts_backward_bias(self, *args: Any, over: tuple[str, ...]) -> tuple[Tensor, ...]: ...

    def row_route(self, axis: str, counts: Tensor) -> RowRoute: ...

    def note_choices(self, choice: Tensor, experts: int) -> None: ...


class ExpertSlots:
    """The slots of a placement over the ranks of an axis."""

    def __init__(self, placement: ExpertPlacement, axis: str, device: torch.device) -> None:
        shares = slot_shares(placement)
        width = max(len(one.slots) for one in shares)
        slots = [one.slots + (0,) * (width - len(one.slots)) for one in shares]
        ends = [one.ends + (2.0,) * (width - len(one.ends)) for one in shares]
        self.slots = torch.tensor(slots, device=device)
        self.ends = torch.tensor(ends, dtype=torch.float64, device=device)
        self.count = len(placement.homes) * placement.slots
        self.factors = ((placement.slots, 1, (axis,)),)  # as those of experts

    def of(self, choice: Tensor, phase: float) -> Tensor:
        """The slots, of all ranks, that rows go to, in the shape of their choice of experts: the rows of
        an expert by its shares, in their order. `phase`, in [0, 1), should differ between ranks."""
        experts, order = choice.reshape(-1).sort(stable=True)
        counts = torch.bincount(experts, minlength=len(self.slots))
        number = torch.arange(len(experts), device=experts.device)
        number = number - (counts.cumsum(0) - counts)[experts]
        at = (number + phase) / counts[experts]
        share = (at.unsqueeze(1) >= self.ends[experts]).sum(1)
        result = torch.empty_like(experts)
        result[order] = self.slots[experts, share]
        return result.view_as(choice)


class ExpertDispatch:
    """Routing of every (token, expert) choice over one axis, there (`dispatch`) and back (`combine`);
    `experts` and `factors` are those of its choices, which may be of slots."""

    def __init__(
        self, ranks: ExpertRanks, axis: str, choice: Tensor, experts: int, factors: Any
    ) -> None:
        degree, slots = ranks.sizes[axis], ranks.expert_slots
        if slots is not None:
            choice = slots.of(choice, (ranks.coordinates[axis] + 0.5) / degree)
            experts, factors = slots.count, slots.factors
        self.experts, self.factors = experts, factors
        owner = owner_of(choice.reshape(-1), factors, axis, ranks.sizes)
        self.order = torch.argsort(owner, stable=True)
        self.tokens = self.order // choice.shape[1]
        self.route = ranks.row_route(axis, torch.bincount(owner, minlength=degree))
        self.choice = self.dispatch(choice.reshape(-1)[self.order]).unsqueeze(1)

    def dispatch(self, rows: Tensor) -> Tensor:
        """Send rows, sorted by `order`, to the owners of their experts."""
        return self.route.there(rows)

    def combine(self, rows: Tensor) -> Tensor:
        """Send result rows back to the ranks of their tokens."""
        return self.route.back(rows)


def owner_of(choice: Tensor, expert_factors: Any, axis: str, sizes: dict[str, int]) -> Tensor:
    """The coordinate along `axis` of the rank that holds each chosen expert."""
    for size, stride, axes in expert_factors:
        if axis in axes:
            for inner in axes[axes.index(axis) + 1 :]:
                size *= sizes[inner]
            return choice // (stride * size) % sizes[axis]
    raise AssertionError(f"experts are not sharded over {axis}")


def experts(
    ranks: ExpertRanks,
    over: tuple[str, ...],
    x: Tensor,
    choice: Tensor,
    gate: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    *rest: Any,
) -> Tensor:
    """`plait::experts` of this rank's tokens."""
    ranks.note_choices(choice, experts)
    rest = (gate_up, down, activation, experts, *rest)
    if over[0] not in ranks.centroids:
        return _dispatched(ranks, over, x, choice, gate, *rest)
    near = _near_rows(ranks, over[0], x, choice, down, experts)
    rows = _of_choices(ranks, over, x, near, rest) * gate.reshape(-1, 1)
    result = rows.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, near.tokens, rows).to(x.dtype)


def experts_backward(
    ranks: ExpertRanks,
    over: tuple[str, ...],
    gradient: Tensor,
    x: Tensor,
    choice: Tensor,
    gate: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Gradients of this rank's tokens and gates, and of its experts: weights, and a bias if any."""
    rest = (gate_up, down, activation, experts, *rest)
    if over[0] not in ranks.centroids:
        return _dispatched_backward(ranks, over, gradient, x, choice, gate, *rest)
    near = _near_rows(ranks, over[0], x, choice, down, experts)
    upper = gradient[near.tokens]
    to_gate = (_of_choices(ranks, over, x, near, rest) * upper).sum(1).to(gate.dtype)
    to_rows = (upper * gate.reshape(-1, 1)).to(x.dtype)
    upper = _totals(to_rows, near)
    one = upper.new_ones(len(upper), 1)
    to_centroids, _, *to_experts = _dispatched_backward(
        ranks, over, upper, near.rows, near.choice, one, *rest
    )
    # a row is a part of its centroid, and what it differs by goes past the expert
    through = (to_centroids - upper) / near.counts.unsqueeze(1)
    to_rows = to_rows + through.to(to_rows.dtype)[near.place]
    to_x = torch.zeros_like(x).index_add_(0, near.tokens, to_rows)
    return to_x, to_gate.view_as(gate), *to_experts


def _near_rows(
    ranks: ExpertRanks, axis: str, x: Tensor, choice: Tensor, down: Tensor, experts: int
) -> CentroidRows:
    if down.shape[1] != x.shape[1]:
        raise UsageError(
            f"experts make rows of {down.shape[1]} of rows of {x.shape[1]}, and a row's difference "
            "from its centroid cannot be added to what comes back: plan without compress"
        )
    return ranks.centroids[axis](x, choice, experts)


def _of_choices(
    ranks: ExpertRanks, over: tuple[str, ...], x: Tensor, near: CentroidRows, rest: tuple[Any, ...]
) -> Tensor:
    """What experts make of every choice: of its centroid, and the row's difference from it."""
    one = near.rows.new_ones(len(near.rows), 1)
    results = _dispatched(ranks, over, near.rows, near.choice, one, *rest)
    return results[near.place] + (x[near.tokens] - near.rows[near.place])


def _totals(rows: Tensor, near: CentroidRows) -> Tensor:
    """The sum over the choices of each centroid."""
    return torch.zeros_like(near.rows).index_add_(0, near.place, rows)


def _dispatched(
    ranks: ExpertRanks,
    over: tuple[str, ...],
    x: Tensor,
    choice: Tensor,
    gate: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    expert_factors: Any,
    *bias: Tensor | None,
) -> Tensor:
    routing = ExpertDispatch(ranks, over[0], choice, experts, expert_factors)
    rows = routing.dispatch(x[routing.tokens])
    unit_gate = rows.new_ones(len(rows), 1)
    rest = (gate_up, down, activation, routing.experts, routing.factors, *bias)
    outputs = ranks.experts(rows, routing.choice, unit_gate, *rest, over=over[1:])
    weighted = routing.combine(outputs) * gate.reshape(-1)[routing.order].unsqueeze(1)
    result = weighted.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, routing.tokens, weighted).to(x.dtype)


def _dispatched_backward(
    ranks: ExpertRanks,
    over: tuple[str, ...],
    gradient: Tensor,
    x: Tensor,
    choice: Tensor,
    gate: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    expert_factors: Any,
    *bias: Tensor | None,
) -> tuple[Tensor, ...]:
    routing = ExpertDispatch(ranks, over[0], choice, experts, expert_factors)
    rows, upper = (routing.dispatch(x[routing.tokens]), routing.dispatch(gradient[routing.tokens]))
    weight = routing.dispatch(gate.reshape(-1)[routing.order]).unsqueeze(1)
    rest = (gate_up, down, activation, routing.experts, routing.factors, *bias)
    run = ranks.experts_backward_bias if bias else ranks.experts_backward
    to_rows, to_weight, *to_experts = run(upper, rows, routing.choice, weight, *rest, over=over[1:])
    to_x = torch.zeros_like(x).index_add_(0, routing.tokens, routing.combine(to_rows))
    to_gate = torch.zeros_like(gate).reshape(-1)
    to_gate[routing.order] = routing.combine(to_weight.squeeze(1))
    return to_x, to_gate.view_as(gate), *to_experts
