"""Training in one process, in float64: the reference that programs are verified against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...ir.capture import Source
from ...ir.capture import execute as interpret
from ...ir.capture.batch import call, leaves
from ...ir.capture.export import loss_of
from ...ir.model import Model

NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})
LEARNING_RATE = 1e-3


class Reference(NamedTuple):
    """Losses by step, gradients of the first step, and the module's state after the last."""

    losses: list[float]
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


class Wide(TorchFunctionMode):
    """Computes in float64 where the code asks for a narrower float (norms in float32, say)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in CASTS:
            return args[0].double()
        kwargs = {name: _widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widen, args), **kwargs)


def _widen(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


def reference(source: Source, model: Model, steps: int, seed: int) -> Reference:
    """Train a copy of `source.model` (float64) with AdamW for `steps` on its one batch.

    By autograd; or by interpreting `model`, which tests hold against autograd, where functions are
    random (torch would draw other numbers than ours) or the module cannot compute in float64.
    """
    if any(function.random for function in model.functions):
        return _train(source, model, steps, seed, eager=False)
    try:
        return _train(source, model, steps, seed, eager=True)
    except (RuntimeError, NotImplementedError):
        return _train(source, model, steps, seed, eager=False)


def _train(source: Source, model: Model, steps: int, seed: int, *, eager: bool) -> Reference:
    module = copy.deepcopy(source.model)
    one_step = _eager(source, module) if eager else _interpreted(source, model, module, seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    losses, gradients = [], {}
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(one_step(step))
        if step == 0:
            gradients = {
                name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
            }
        optimizer.step()
    return Reference(losses, gradients, module.state_dict())


def _eager(source: Source, module: nn.Module) -> Callable[[int], float]:
    def one_step(step: int) -> float:
        with Wide():
            loss = loss_of(call(module, source.batch), source.batch, source.loss_fn)
        loss.backward()
        return float(loss.detach())

    return one_step


def _interpreted(
    source: Source, model: Model, module: nn.Module, seed: int
) -> Callable[[int], float]:
    tensors = dict(leaves(source.batch))
    batch = [tensors[item.path] for item in model.inputs]
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers(remove_duplicate=False))

    def one_step(step: int) -> float:
        states = {name: p.detach() for name, p in parameters.items()} | buffers
        loss, gradients, updates = interpret(model, states, batch, seed=seed, step=step)
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        with torch.no_grad():
            for name, value in updates.items():
                buffers[name].copy_(value)
        return float(loss)

    return one_step
