"""Mixture of experts as one operator: gated experts on the tokens routed to them, and backward.

    x [n h], choice [n k], share [n k], gate_up [e 2f h], down [e o f] -> [n o]

A token's result is the sum over its choices of share * down @ (act(gate @ x) * (up @ x)).
`experts`: number of all experts; `here`: shard offsets of the experts in these weights, choices
of others add nothing. Backward recomputes the first product instead of saving its result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .elementary import LIBRARY, OPS, register
from .shard_offsets import to_local_positions

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
_ATEN = torch.ops.aten
# the gradient of the gate from that of the activation, and the gate
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _ATEN.silu_backward,
    "gelu": _ATEN.gelu_backward,
    "gelu_tanh": partial(_ATEN.gelu_backward, approximate="tanh"),
    "relu": lambda upper, gate: _ATEN.threshold_backward(upper, gate, 0),
}


class ExpertRoutes:
    """Choices of local experts, sorted by expert: flat indices, tokens, and rows per expert."""

    def __init__(self, choice: Tensor, weights: Tensor, experts: int, here: list[int]) -> None:
        local, mine = to_local_positions(choice.reshape(-1), here or [experts, 1, 0])
        (selected,) = mine.nonzero(as_tuple=True)
        order = torch.argsort(local[selected], stable=True)
        self.flat = selected[order]
        self.tokens = self.flat // choice.shape[1]
        self.counts = torch.bincount(local[selected], minlength=weights.shape[0]).tolist()


def _grouped(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Each expert's rows times its matrix, transposed: [r h], [e f h] -> [r f]."""
    parts = rows.split(counts)
    return torch.cat([part @ w.t() for part, w in zip(parts, weights, strict=True)])


def _grouped_gradient(upper: Tensor, rows: Tensor, counts: list[int]) -> Tensor:
    """Each expert's gradient of its matrix: [r f], [r h] -> [e f h]."""
    pairs = zip(upper.split(counts), rows.split(counts), strict=True)
    return torch.stack([u.t() @ r for u, r in pairs])


def _gated(both: Tensor, activation: str) -> Tensor:
    gate, up = both.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up


def _gated_gradient(upper: Tensor, both: Tensor, activation: str) -> Tensor:
    """The gradient of `both` from that of `_gated`."""
    gate, up = both.chunk(2, -1)
    to_gate = _DERIVATIVES[activation](upper * up, gate)
    return torch.cat((to_gate, upper * ACTIVATIONS[activation](gate)), -1)


def _experts(
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: list[int],
) -> Tensor:
    routes = ExpertRoutes(choice, down, experts, here)
    hidden = _gated(_grouped(x[routes.tokens], gate_up, routes.counts), activation)
    rows = _grouped(hidden, down, routes.counts) * share.reshape(-1)[routes.flat].unsqueeze(1)
    result = rows.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, routes.tokens, rows).to(x.dtype)


def _experts_fake(x: Tensor, choice: Tensor, share: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], rest[1].shape[1])


def _experts_backward(
    gradient: Tensor,
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    routes = ExpertRoutes(choice, down, experts, here)
    rows, counts = x[routes.tokens], routes.counts
    both = _grouped(rows, gate_up, counts)
    hidden = _gated(both, activation)
    upper = gradient[routes.tokens]
    weight = share.reshape(-1)[routes.flat].unsqueeze(1)
    to_hidden = _grouped(upper, down.transpose(1, 2), counts)
    to_share = torch.zeros_like(share).reshape(-1)
    to_share[routes.flat] = (to_hidden * hidden).sum(1).to(share.dtype)
    to_both = _gated_gradient((to_hidden * weight).to(hidden.dtype), both, activation)
    to_x = torch.zeros_like(x).index_add_(
        0, routes.tokens, _grouped(to_both, gate_up.transpose(1, 2), counts)
    )
    to_down = _grouped_gradient((upper * weight).to(x.dtype), hidden, counts)
    return to_x, to_share.view_as(share), _grouped_gradient(to_both, rows, counts), to_down


def _experts_backward_fake(
    gradient: Tensor, x: Tensor, choice: Tensor, share: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (x, share, *rest[:2]))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_x, to_share, to_gate_up, to_down = OPS.experts_backward(
        gradient, *ctx.saved_tensors, *ctx.rest
    )
    return to_x, None, to_share, to_gate_up, to_down, None, None, None


_TENSORS = "Tensor x, Tensor choice, Tensor share, Tensor gate_up, Tensor down"
_REST = "str activation, int experts, int[] here"
register(f"experts({_TENSORS}, {_REST}) -> Tensor", _experts, _experts_fake)
register(
    f"experts_backward(Tensor gradient, {_TENSORS}, {_REST}) -> (Tensor, Tensor, Tensor, Tensor)",
    _experts_backward,
    _experts_backward_fake,
)
torch.library.register_autograd("plait::experts", _gradient, setup_context=_context, lib=LIBRARY)
