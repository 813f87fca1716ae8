"""One layer of a recurrent network in one direction, over all steps, as one operator.

    x [t n i], h [n h], c [n h], w_x [g i], w_h [g h], biases [g] -> out [t n h], last h, last c

Gates g are 4 h in an LSTM, 3 h in a GRU, h in a plain network, in torch's order; c is read by an LSTM
alone. Steps are sequential, samples independent. Backward runs the layer again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_private import differentiating
from .elementary import LIBRARY, OPS, register

ARGUMENTS = (
    "Tensor x, Tensor h, Tensor c, Tensor w_x, Tensor w_h, Tensor? b_x, Tensor? b_h, "
    "str kind, bool reverse"
)


def _run(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None,
    b_h: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [w for w in (w_x, w_h, b_x, b_h) if w is not None]
    steps = x.flip(0) if reverse else x
    options = (b_x is not None, 1, 0.0, False, False, False)
    if kind == "lstm":
        out, last_h, last_c = torch.lstm(steps, [h[None], c[None]], weights, *options)
        last_c = last_c[0]
    else:
        layer = {"gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}[kind]
        out, last_h = layer(steps, h[None], weights, *options)
        last_c = torch.zeros_like(c)
    return (
        (out.flip(0) if reverse else out).contiguous(),
        last_h[0].contiguous(),
        last_c.contiguous(),
    )


def _fake(x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], h.shape[1]), torch.empty_like(h), torch.empty_like(c)


def _backward(upper: Tensor, upper_h: Tensor, upper_c: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors, (kind, reverse) = args[:7], args[7:]
    with differentiating():
        fresh = [None if t is None else t.detach().requires_grad_() for t in tensors]
        results = _run(*fresh, kind, reverse)  # type: ignore[arg-type]
        pairs = [
            (r, u)
            for r, u in zip(results, (upper, upper_h, upper_c), strict=True)
            if r.requires_grad
        ]
        sources = [t for t in fresh if t is not None]
        found = torch.autograd.grad(
            [r for r, _ in pairs], sources, [u for _, u in pairs], allow_unused=True
        )
    gradients = iter(found)
    return tuple(_or_zeros(next(gradients) if t is not None else None, t, upper) for t in fresh)


def _or_zeros(gradient: Tensor | None, of: Tensor | None, like: Tensor) -> Tensor:
    if gradient is not None:
        return gradient.contiguous()
    return like.new_zeros(0) if of is None else torch.zeros_like(of)


def _backward_fake(upper: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors = args[2:9]
    return tuple(upper.new_empty(0) if t is None else torch.empty_like(t) for t in tensors)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _gradient(ctx: Any, *upper: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = OPS.recurrence_backward(*upper, *saved, *ctx.rest)
    return (*(None if s is None else g for s, g in zip(saved, gradients, strict=True)), None, None)


register(f"recurrence({ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _run, _fake)
register(
    f"recurrence_backward(Tensor upper, Tensor upper_h, Tensor upper_c, {ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
torch.library.register_autograd("plait::recurrence", _gradient, setup_context=_context, lib=LIBRARY)
