"""Record a transformers model's mixture of experts as `plait::experts`.

The library calls experts through a table of implementations; during recording, the one that sorts
tokens by expert is replaced. Experts that do more than products and a pointwise gate keep the
library's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..operators.elementary import OPS
from ..operators.gates import recorded_gate
from ..torch_private import outside_modes

SORTED = "grouped_mm"
UNSUPPORTED = ("has_post_expert_norm", "_is_expert_parallel")
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
        return _run(self, x, choice, share.to(x.dtype), activation)

    table[SORTED] = forward
    try:
        yield
    finally:
        table[SORTED] = original


def _run(module: Any, x: Tensor, choice: Tensor, share: Tensor, activation: str) -> Tensor:
    """The experts of a module; weights that it keeps transposed are turned."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    weights = (getattr(module, name), module.down_proj)
    if module.is_transposed:
        weights = (weights[0].transpose(1, 2), weights[1].transpose(1, 2))
    bias = getattr(module, f"{name}_bias") if module.has_bias else None
    experts = weights[0].shape[0]
    result = OPS.experts(x, choice, share, *weights, activation, experts, [], bias)
    if bias is None:
        return result
    # a choice adds its share of its expert's last bias
    shares = share.new_zeros(len(share), experts).scatter_add(1, choice, share)
    return result + shares @ module.down_proj_bias


def _activation(module: Any, moe: Any) -> str | None:
    """The gate of the module (`operators.gates`); None where `plait::experts` cannot express it."""
    if any(getattr(module, fact, False) for fact in UNSUPPORTED):
        return None
    plain = module.has_gate and module.is_concatenated and not module.has_bias
    if plain and getattr(type(module), "_apply_gate", None) is moe._default_apply_gate:
        name = _named(getattr(module, "act_fn", None))
        if name is not None:
            return name
    weight = module.gate_up_proj if module.has_gate else module.up_proj
    width = weight.shape[2 if module.is_transposed else 1]
    gate = module._apply_gate if module.has_gate else module.act_fn
    with outside_modes():
        return recorded_gate(gate, width, module.has_gate)


def _named(activation: Any) -> str | None:
    """Our name for an activation of the library."""
    activations = sys.modules["transformers.activations"].ACT2FN
    kind = type(activation)
    return next(
        (name for name, library_name in NAMES.items() if type(activations[library_name]) is kind),
        None,
    )
