"""Buffers that a forward replaces: recorded as if their new values were written in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import TraceError

Kept = list[tuple[str, nn.Module, dict[str, Tensor | None], dict[str, Tensor | None]]]


def module_tensors(model: nn.Module) -> Kept:
    """(path, module, its parameters, its buffers) as they are now."""
    return [
        (path, m, dict(m._parameters), dict(m._buffers))
        for path, m in model.named_modules(remove_duplicate=True)
    ]


def write_rebound(before: Kept) -> None:
    """Write replaced buffers back into those that a recording began with."""
    for path, module, parameters, buffers in before:
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if name not in parameters or parameter is not parameters[name]:
                raise TraceError(
                    f"the forward replaces parameter {prefix}{name}; only buffers may change"
                )
        for name, buffer in module._buffers.items():
            old = buffers.get(name)
            if old is None and buffer is not None:
                raise TraceError(
                    f"the forward registers buffer {prefix}{name}; register it in __init__, or run the "
                    "model once before tracing"
                )
            if buffer is not old:
                _write(f"{prefix}{name}", old, buffer)


def _write(name: str, old: Tensor | None, new: Tensor | None) -> None:
    if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
        raise TraceError(
            f"the forward replaces buffer {name} by one of another shape or element type; keep both"
        )
    with torch.no_grad():
        old.copy_(new)
