"""Mixture of experts as one operator: gated experts on the tokens routed to them, and backward.

    x [n h], choice [n k], share [n k], gate_up [e 2f h], down [e o f] (, bias [e 2f]) -> [n o]

A token's result is the sum over its choices of share * down @ (act(gate @ x) * (up @ x)), or of what
the text of `activation` says (`gates`); `bias` is added to the first product.
`experts`: number of all experts; `here`: shard offsets of the experts in these weights, choices
of others add nothing. Backward recomputes the first product instead of saving its result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elementary import LIBRARY, OPS, register
from .gates import gated, gated_gradient
from .shard_offsets import to_local_positions


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


def _first(rows: Tensor, gate_up: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """The first product: [r h], [e f h] -> [r f]."""
    product = _grouped(rows, gate_up, counts)
    if bias is None:
        return product
    return product + bias.repeat_interleave(torch.tensor(counts, device=bias.device), 0)


def _experts(
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    routes = ExpertRoutes(choice, down, experts, here)
    hidden = gated(_first(x[routes.tokens], gate_up, bias, routes.counts), activation)
    rows = _grouped(hidden, down, routes.counts) * share.reshape(-1)[routes.flat].unsqueeze(1)
    result = rows.new_zeros(x.shape[0], down.shape[1])
    return result.index_add_(0, routes.tokens, rows).to(x.dtype)


def _experts_fake(x: Tensor, choice: Tensor, share: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], rest[1].shape[1])


def _experts_backward_bias(
    gradient: Tensor,
    x: Tensor,
    choice: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    experts: int,
    here: list[int],
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    routes = ExpertRoutes(choice, down, experts, here)
    rows, counts = x[routes.tokens], routes.counts
    both = _first(rows, gate_up, bias, counts)
    hidden = gated(both, activation)
    upper = gradient[routes.tokens]
    weight = share.reshape(-1)[routes.flat].unsqueeze(1)
    to_hidden = _grouped(upper, down.transpose(1, 2), counts)
    to_share = torch.zeros_like(share).reshape(-1)
    to_share[routes.flat] = (to_hidden * hidden).sum(1).to(share.dtype)
    to_both = gated_gradient((to_hidden * weight).to(hidden.dtype), both, activation)
    to_x = x.new_zeros(x.shape).index_add_(
        0, routes.tokens, _grouped(to_both, gate_up.transpose(1, 2), counts)
    )
    to_down = _grouped_gradient((upper * weight).to(x.dtype), hidden, counts)
    to_gate_up = _grouped_gradient(to_both, rows, counts)
    to_bias = torch.stack([part.sum(0) for part in to_both.split(counts)])
    return to_x, to_share.view_as(share), to_gate_up, to_down, to_bias


def _experts_backward(*args: Any) -> tuple[Tensor, ...]:
    return _experts_backward_bias(*args)[:4]


def _experts_backward_bias_fake(*args: Any) -> tuple[Tensor, ...]:
    bias = args[-1]
    return *_experts_backward_fake(*args), bias.new_empty(bias.shape)


def _experts_backward_fake(
    gradient: Tensor, x: Tensor, choice: Tensor, share: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (x, share, *rest[:2]))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    bias = inputs[8] if len(inputs) > 8 else None
    ctx.save_for_backward(*inputs[:5], *(() if bias is None else (bias,)))
    ctx.rest = inputs[5:8]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors, bias = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    run = OPS.experts_backward_bias if bias else OPS.experts_backward
    to_x, to_share, to_gate_up, to_down, *to_bias = run(gradient, *tensors, *ctx.rest, *bias)
    return to_x, None, to_share, to_gate_up, to_down, None, None, None, *(to_bias or (None,))


_TENSORS = "Tensor x, Tensor choice, Tensor share, Tensor gate_up, Tensor down"
_REST = "str activation, int experts, int[] here"
_FOUR = "Tensor, Tensor, Tensor, Tensor"
register(f"experts({_TENSORS}, {_REST}, Tensor? bias=None) -> Tensor", _experts, _experts_fake)
register(
    f"experts_backward(Tensor gradient, {_TENSORS}, {_REST}) -> ({_FOUR})",
    _experts_backward,
    _experts_backward_fake,
)
register(
    f"experts_backward_bias(Tensor gradient, {_TENSORS}, {_REST}, Tensor bias) -> ({_FOUR}, Tensor)",
    _experts_backward_bias,
    _experts_backward_bias_fake,
)
torch.library.register_autograd("plait::experts", _gradient, setup_context=_context, lib=LIBRARY)
