"""One layer of a recurrent network in one direction, over all steps, as one operator.

    x [t n i], h [n h], c [n h], w_x [g i], w_h [g h], biases [g], lengths [n]
        -> out [t n h], last h, last c

Gates g are 4 h in an LSTM, 3 h in a GRU, h in a plain network, in torch's order; c is read by an LSTM
alone. Steps are sequential, samples independent. With `lengths` a sample has that many steps: what
comes after them is zero, and its last states are those of its last step. Backward runs the layer again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..torch_private import differentiating
from .elementary import LIBRARY, OPS, register

ARGUMENTS = (
    "Tensor x, Tensor h, Tensor c, Tensor w_x, Tensor w_h, Tensor? b_x, Tensor? b_h, "
    "Tensor? lengths, str kind, bool reverse"
)
LAYERS: dict[str, Any] = {
    "lstm": torch.lstm,
    "gru": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}
TENSORS = 8


def _run(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None,
    b_h: Tensor | None,
    lengths: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [w for w in (w_x, w_h, b_x, b_h) if w is not None]
    steps = _reversed(x, lengths) if reverse else x
    options = (b_x is not None, 1, 0.0, False, False)
    if lengths is None:
        out, last_h, last_c = _layer(kind, (steps,), (h, c), weights, *options, False)
    else:
        packed = pack_padded_sequence(steps, lengths.cpu(), enforce_sorted=False)
        order, back = packed.sorted_indices, packed.unsorted_indices
        assert order is not None
        assert back is not None
        states = h.index_select(0, order), c.index_select(0, order)
        out, last_h, last_c = _layer(kind, packed[:2], states, weights, *options)
        out, _ = pad_packed_sequence(packed._replace(data=out), total_length=len(x))
        last_h, last_c = last_h.index_select(0, back), last_c.index_select(0, back)
    out = _reversed(out, lengths) if reverse else out
    return out.contiguous(), last_h.contiguous(), last_c.contiguous()


def _layer(
    kind: str, steps: tuple[Any, ...], states: tuple[Tensor, Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and last states of torch's layer, on steps that are packed or not."""
    h, c = states
    if kind == "lstm":
        out, last_h, last_c = LAYERS[kind](*steps, [h[None], c[None]], *rest)
        return out, last_h[0], last_c[0]
    out, last_h = LAYERS[kind](*steps, h[None], *rest)
    return out, last_h[0], torch.zeros_like(c)


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Steps in the other order, of every sample as many as it has."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, places[..., None].expand_as(x))


def _fake(x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], h.shape[1]), h.new_empty(h.shape), c.new_empty(c.shape)


def _backward(upper: Tensor, upper_h: Tensor, upper_c: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors, rest = args[: TENSORS - 1], args[TENSORS - 1 :]
    with differentiating():
        fresh = [None if t is None else t.detach().requires_grad_() for t in tensors]
        results = _run(*fresh, *rest)  # type: ignore[arg-type]
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
    return like.new_zeros(0) if of is None else of.new_zeros(of.shape)


def _backward_fake(upper: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors = args[2:9]
    return tuple(upper.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.rest = inputs[TENSORS:]


def _gradient(ctx: Any, *upper: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = OPS.recurrence_backward(*upper, *saved, *ctx.rest)
    given = zip(saved, gradients, strict=False)
    return (*(None if s is None else g for s, g in given), None, None, None)


register(f"recurrence({ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _run, _fake)
register(
    f"recurrence_backward(Tensor upper, Tensor upper_h, Tensor upper_c, {ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
torch.library.register_autograd("plait::recurrence", _gradient, setup_context=_context, lib=LIBRARY)
