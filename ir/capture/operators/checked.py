"""A value, once a fact about every one of its samples is checked while the program runs.

x [n …], holds [n] -> x        raises `message` where it does not hold for a sample
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_private import assert_holds
from .elementary import LIBRARY, OPS, register

__all__ = ["OPS"]


def _checked(x: Tensor, holds: Tensor, message: str) -> Tensor:
    assert_holds(holds.all(), message)
    return x.clone()


def _gradient(ctx: Any, upper: Tensor) -> tuple[Tensor | None, ...]:
    return upper, None, None


register(
    "checked(Tensor x, Tensor holds, str message) -> Tensor",
    _checked,
    lambda x, *_: torch.empty_like(x),
)
torch.library.register_autograd(
    "plait::checked", _gradient, setup_context=lambda ctx, inputs, output: None, lib=LIBRARY
)
