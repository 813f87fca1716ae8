"""Private names of torch (2.13) by which recordings are copied; see `capture/torch_private`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import track_tensor_tree

from ..torch_private import apart_from_recording, fake_mode_of, recording_tracer


def record_as(tensor: torch.Tensor, node: Any) -> None:
    """Let a tensor be this node to what is recorded from here on. Used as `repeated_value` is."""
    tracer = recording_tracer()
    track_tensor_tree(tensor, torch.fx.Proxy(node, tracer), constant=None, tracer=tracer)


def repeated_value(node: Any, like: torch.Tensor) -> torch.Tensor:
    """A new tensor with the facts of another one that is this node to the recording.

    Without it, what was recorded for one module cannot be copied for an equal one.
    """
    with apart_from_recording(), fake_mode_of(like):
        value = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
        if like.requires_grad:
            value = value.requires_grad_() * 1  # no leaf
    record_as(value, node)
    return value


def modes_now() -> tuple[Any, ...]:
    """What changes how operators are recorded, apart from their arguments; modes have no public list."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    gradients = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    modes = torch.overrides._get_current_function_mode_stack()
    return *autocast, *gradients, torch.get_default_dtype(), tuple(map(id, modes))


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules inside a module by name. Public names leave out where there is none, so that two
    modules seem built alike of which only one has an attribute."""
    return module._modules


def module_hooks_of(module: nn.Module) -> bool:
    """Whether any hook, or a compiled form, runs with a module. Without it, equal modules may not be."""
    forward = module._forward_hooks or module._forward_pre_hooks
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(forward or backward or module._compiled_call_impl is not None)
