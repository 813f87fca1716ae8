"""The module itself, run by torch in float64: what an executed model must agree with."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from plait.ir.capture.execute import execute
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Model

LOW = (torch.float32, torch.bfloat16, torch.float16)


class Lifted(TorchFunctionMode):
    """Casts to narrower floats become casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        lift = {dtype: torch.float64 for dtype in LOW}
        args = tuple(lift.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = kwargs or {}
        for name, value in kwargs.items():
            if isinstance(value, torch.dtype):
                kwargs[name] = lift.get(value, value)
        return func(*args, **kwargs)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Training mode with every dropout rate zero."""
    for module in model.train().modules():
        for holder in (module, getattr(module, "config", None)):
            for name, value in vars(holder).items() if holder is not None else ():
                if isinstance(value, float) and ("drop" in name or name == "p"):
                    setattr(holder, name, 0.0)
    return model


def double(batch: Any) -> Any:
    cast = {n: _double(t) for n, t in batch.items()}
    return cast


def _double(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def state_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def tensors(model: Model, batch: Any) -> list[torch.Tensor]:
    leaves = []
    for item in model.inputs:
        value = batch
        for key in item.path:
            value = value[key]
        leaves.append(value)
    return leaves


def run(model: Model, module: torch.nn.Module, batch: Any, **options: Any) -> Any:
    """Execute the float64 form of a traced model on a float64 module's tensors."""
    return execute(
        cast_model(model, "float64"), state_tensors(module), tensors(model, batch), **options
    )


def difference(ours: dict[str, torch.Tensor], module: torch.nn.Module) -> dict[str, float]:
    """Relative error per parameter; gradients that vanish are measured against the largest."""
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert ours.keys() == gradients.keys()
    largest = max(g.abs().max() for g in gradients.values())
    return {
        name: ((ours[name] - g).abs().max() / g.abs().max().clamp(min=1e-6 * largest)).item()
        for name, g in gradients.items()
    }
