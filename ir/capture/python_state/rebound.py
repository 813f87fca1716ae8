"""Buffers that a forward replaces: recorded as if their new values were written in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import TraceError
from ..torch_private import tensor_tables

Tensors = dict[str, Tensor | None]


class ModuleTensors(NamedTuple):
    """The parameters and buffers that a module has at some time."""

    path: str
    module: nn.Module
    parameters: Tensors
    buffers: Tensors


def module_tensors(model: nn.Module) -> list[ModuleTensors]:
    """The tensors of every module as they are now."""
    return [
        ModuleTensors(path, module, *map(dict, tensor_tables(module)))
        for path, module in model.named_modules()
    ]


def write_rebound(before: list[ModuleTensors]) -> None:
    """Write replaced buffers back into those that a recording began with."""
    for path, module, parameters, buffers in before:
        prefix = f"{path}." if path else ""
        new_parameters, new_buffers = tensor_tables(module)
        for name, parameter in new_parameters.items():
            if name not in parameters or parameter is not parameters[name]:
                raise TraceError(
                    f"the forward replaces parameter {prefix}{name}; only buffers may change"
                )
        for name, buffer in new_buffers.items():
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
