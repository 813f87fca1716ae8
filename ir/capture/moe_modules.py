"""Record a transformers model's mixture of experts as `plait::experts`.

The library calls experts through a table of implementations; during recording, the one that sorts
tokens by expert is replaced. Experts of another form (biases, transposed or interleaved weights, a
custom gate) keep the library's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .operators.elementary import OPS

SORTED = "grouped_mm"
# our activation -> the library's name
NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


@contextlib.contextmanager
def recorded_experts() -> Iterator[None]:
    """Replace the library's implementation, if the model has imported the library."""
    moe = sys.modules.get("transformers.integrations.moe")
    if moe is None or SORTED not in moe.ALL_EXPERTS_FUNCTIONS:
        yield
        return
    table = moe.ALL_EXPERTS_FUNCTIONS
    original = table[SORTED]

    def forward(self: Any, x: Tensor, choice: Tensor, share: Tensor) -> Tensor:
        activation = _activation(self, moe)
        if activation is None:
            return original(self, x, choice, share)
        weights = (self.gate_up_proj, self.down_proj)
        experts = self.gate_up_proj.shape[0]
        return OPS.experts(x, choice, share.to(x.dtype), *weights, activation, experts, [])

    table[SORTED] = forward
    try:
        yield
    finally:
        table[SORTED] = original


def _activation(module: nn.Module, moe: Any) -> str | None:
    """Our name for the module's activation; None where `plait::experts` cannot express it."""
    unsupported = ("has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")
    common = (
        all(getattr(module, fact, False) for fact in ("has_gate", "is_concatenated"))
        and not any(getattr(module, fact, False) for fact in unsupported)
        and getattr(type(module), "_apply_gate", None) is moe._default_apply_gate
    )
    if not common:
        return None
    activations = sys.modules["transformers.activations"].ACT2FN
    kind = type(getattr(module, "act_fn", None))
    return next(
        (name for name, library_name in NAMES.items() if type(activations[library_name]) is kind),
        None,
    )
