"""Expert parallelism: tokens travel to the ranks that hold their experts, and results come back.

Every rank of an axis has its own tokens and its own experts. A choice is one row: it is sent to the
owner of its expert, goes through the same operator there, and returns to its token. Over several
axes it travels along one after the other.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """What the exchange needs of a rank."""

    sizes: dict[str, int]

    def experts(self, *args: Any, over: tuple[str, ...]) -> Tensor: ...

    def experts_backward(self, *args: Any, over: tuple[str, ...]) -> tuple[Tensor, ...]: ...

    def exchange(self, x: Tensor, axis: str, sent: list[int], received: list[int]) -> Tensor: ...


class Travel:
    """One round trip of every choice over one axis."""

    def __init__(self, ranks: Ranks, axis: str, choice: Tensor, here: Any) -> None:
        self.ranks, self.axis = ranks, axis
        ways = ranks.sizes[axis]
        owner = _owner(choice.reshape(-1), here, axis, ranks.sizes)
        self.order = torch.argsort(owner, stable=True)
        self.tokens = self.order // choice.shape[1]
        counts, one = torch.bincount(owner, minlength=ways), [1] * ways
        self.sent: list[int] = counts.tolist()
        self.received: list[int] = ranks.exchange(counts, axis, one, one).tolist()
        self.choice = self.there(choice.reshape(-1)[self.order]).unsqueeze(1)

    def there(self, rows: Tensor) -> Tensor:
        """Rows in the order of `order` to the owners of their experts."""
        return self.ranks.exchange(rows, self.axis, self.sent, self.received)

    def back(self, rows: Tensor) -> Tensor:
        return self.ranks.exchange(rows, self.axis, self.received, self.sent)


def _owner(choice: Tensor, here: Any, axis: str, sizes: dict[str, int]) -> Tensor:
    """The place along `axis` of the rank that holds each chosen expert."""
    for size, stride, axes in here:
        if axis in axes:
            for inner in axes[axes.index(axis) + 1 :]:
                size *= sizes[inner]
            return choice // (stride * size) % sizes[axis]
    raise AssertionError(f"experts do not lie over {axis}")


def experts(
    ranks: Ranks,
    over: tuple[str, ...],
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: Any,
) -> Tensor:
    """`plait::experts` of this rank's tokens."""
    travel = Travel(ranks, over[0], choice, here)
    rows = travel.there(x[travel.tokens])
    whole = rows.new_ones(len(rows), 1)
    rest = (gate_up, down, activation, experts, here)
    made = ranks.experts(rows, travel.choice, whole, *rest, over=over[1:])
    weighted = travel.back(made) * share.reshape(-1)[travel.order].unsqueeze(1)
    result = weighted.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, travel.tokens, weighted).to(x.dtype)


def experts_backward(
    ranks: Ranks,
    over: tuple[str, ...],
    gradient: Tensor,
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of this rank's tokens and shares, and of the experts it holds."""
    travel = Travel(ranks, over[0], choice, here)
    rows, upper = travel.there(x[travel.tokens]), travel.there(gradient[travel.tokens])
    weight = travel.there(share.reshape(-1)[travel.order]).unsqueeze(1)
    rest = (gate_up, down, activation, experts, here)
    to_rows, to_weight, to_gate_up, to_down = ranks.experts_backward(
        upper, rows, travel.choice, weight, *rest, over=over[1:]
    )
    to_x = torch.zeros_like(x).index_add_(0, travel.tokens, travel.back(to_rows))
    to_share = torch.zeros_like(share).reshape(-1)
    to_share[travel.order] = travel.back(to_weight.squeeze(1))
    return to_x, to_share.view_as(share), to_gate_up, to_down
