"""Expert parallelism: dispatches tokens to the ranks that hold their experts, combines the results.

Every rank of an axis has its own tokens and its own experts. A choice is one row: it is sent to the
owner of its expert, goes through the same operator there, and returns to its token. Over several
axes it is routing along one after the other. Where experts have replicas, choices of experts become
choices of slots first, which are then the experts that ranks have.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ...ir.plan.expert_placement import ExpertPlacement, slot_shares
from .group_hierarchy import RowRoute


class ExpertRanks(Protocol):
    """Operators and collectives of a rank that dispatch and combine call."""

    sizes: dict[str, int]
    coordinates: dict[str, int]
    expert_slots: ExpertSlots | None

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
        owner = _owner(choice.reshape(-1), factors, axis, ranks.sizes)
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


def _owner(choice: Tensor, expert_factors: Any, axis: str, sizes: dict[str, int]) -> Tensor:
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
    expert_factors: Any,
    *bias: Tensor | None,
) -> Tensor:
    """`plait::experts` of this rank's tokens."""
    ranks.note_choices(choice, experts)
    routing = ExpertDispatch(ranks, over[0], choice, experts, expert_factors)
    rows = routing.dispatch(x[routing.tokens])
    unit_gate = rows.new_ones(len(rows), 1)
    rest = (gate_up, down, activation, routing.experts, routing.factors, *bias)
    outputs = ranks.experts(rows, routing.choice, unit_gate, *rest, over=over[1:])
    weighted = routing.combine(outputs) * gate.reshape(-1)[routing.order].unsqueeze(1)
    result = weighted.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, routing.tokens, weighted).to(x.dtype)


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
    expert_factors: Any,
    *bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of this rank's tokens and gates, and of its experts: weights, and a bias if any."""
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
