"""Operators that stand for a backward of the user's own while a model is captured.

A recording holds the user's backward as ordinary operators on `tangent` tensors, and one
`user_backward` that joins both: its results are the forward's, their gradients go through the
recorded operators. `differentiate` replaces both operators by an autograd function, so that neither
reaches a joint graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elementary import LIBRARY, OPS

TANGENT = "plait.tangent.default"
USER_BACKWARD = "plait.user_backward.default"

LIBRARY.define("tangent(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    "user_backward(Tensor[] results, Tensor[] inputs, Tensor[] tangents, Tensor?[] gradients, "
    "bool rebind, int pair, Tensor[] paired) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _tangent(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _user_backward(results: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(r) for r in results]


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _never(ctx: Any, *gradients: Any) -> Any:
    raise AssertionError("a captured backward is run by differentiate alone")


for _name, _kernel in (("tangent", _tangent), ("user_backward", _user_backward)):
    for _device in ("CPU", "CUDA"):
        LIBRARY.impl(_name, _kernel, _device)
    torch.library.register_fake(f"plait::{_name}", _kernel, lib=LIBRARY)
torch.library.register_autograd("plait::user_backward", _never, setup_context=_context, lib=LIBRARY)

tangent = OPS.tangent
user_backward = OPS.user_backward
