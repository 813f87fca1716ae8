"""Connectionist temporal classification (Graves et al. 2006) as one operator, samples apart.

    x [t b c], labels [b s], frames [b], lengths [b] -> losses [b]

`x` are log-probabilities; `blank` is a class; with `zero_infinity`, losses of samples that no
alignment fits are 0. Backward runs the loss again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_private import differentiating
from .elementary import LIBRARY, OPS, register

__all__ = ["OPS"]

ARGUMENTS = "Tensor x, Tensor labels, Tensor frames, Tensor lengths, int blank, bool zero_infinity"


def _losses(
    x: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor, blank: int, zero_infinity: bool
) -> Tensor:
    return torch.ctc_loss(x, labels, frames, lengths, blank, 0, zero_infinity)


def _backward(upper: Tensor, x: Tensor, *rest: Any) -> Tensor:
    with differentiating():
        fresh = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_losses(fresh, *rest), fresh, upper)
    return gradient.contiguous()


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _gradient(ctx: Any, upper: Tensor) -> tuple[Tensor | None, ...]:
    return OPS.ctc_backward(upper, *ctx.saved_tensors, *ctx.rest), *(None,) * 5


register(f"ctc({ARGUMENTS}) -> Tensor", _losses, lambda x, *_: x.new_empty(x.shape[1]))
register(
    f"ctc_backward(Tensor upper, {ARGUMENTS}) -> Tensor",
    _backward,
    lambda upper, x, *_: x.new_empty(x.shape),
)
torch.library.register_autograd("plait::ctc", _gradient, setup_context=_context, lib=LIBRARY)
