"""A module of a model file's parameters, without code of its own, and a batch, both drawn at random.

What a file describes can be run only by interpreting its operators: see `reference.interpreted`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ir.capture import Source
from ...ir.capture.literals import DTYPES
from ...ir.model.model import Model, ModelInput, Parameter


def bare_source(model: Model, name: str, seed: int) -> Source:
    """Parameters, buffers and batch of a model, drawn under `seed`, in the model's own types."""
    generator = torch.Generator().manual_seed(seed)
    root = nn.Module()
    for parameter in model.parameters:
        if parameter.kind == "constant":
            continue
        tensor = _state(parameter, generator)
        for path in (parameter.name, *parameter.aliases):
            owner, _, leaf = path.rpartition(".")
            _register(_submodule(root, owner), leaf, tensor, parameter)
    return Source(root, _batch(model, generator), None, model.name, name)


def _submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, which is created with all those above it."""
    module = root
    for part in filter(None, path.split(".")):
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def _register(owner: nn.Module, leaf: str, tensor: Tensor, parameter: Parameter) -> None:
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)


def _state(parameter: Parameter, generator: torch.Generator) -> Tensor:
    """Values at which operators are tame: weights by the square root of what they sum, buffers near
    one (a variance is positive), integers zero (an index is in range)."""
    shape, dtype = parameter.type.shape, DTYPES[parameter.type.dtype]
    if parameter.kind == "buffer":
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        return (torch.rand(shape, generator=generator) + 0.5).to(dtype)
    summed = max(1, parameter.type.elements // max(shape[:1] or (1,)))
    values = torch.randn(shape, generator=generator) / summed**0.5
    values = values if len(shape) > 1 else 1.0 + 0.1 * values
    trainable = parameter.trainable and dtype.is_floating_point
    return nn.Parameter(values.to(dtype), requires_grad=trainable)


def _batch(model: Model, generator: torch.Generator) -> Any:
    """A batch nested as the traced one; integers are below every size of a matrix, so that they may
    index its rows or name its classes."""
    matrices = [p.type.shape for p in model.parameters if len(p.type.shape) == 2]
    most = max(2, min((n for shape in matrices for n in shape), default=2))
    by_path = {item.path: _input(item, most, generator) for item in model.inputs}
    return _nested(by_path)


def _input(item: ModelInput, most: int, generator: torch.Generator) -> Tensor:
    shape, dtype = item.type.shape, DTYPES[item.type.dtype]
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(most, shape, generator=generator, dtype=dtype)


def _nested(by_path: dict[tuple[str | int, ...], Tensor]) -> Any:
    """Tensors by path as the dicts and tuples that they lie in."""
    if set(by_path) == {()}:
        return by_path[()]
    groups: dict[str | int, dict[tuple[str | int, ...], Tensor]] = {}
    for (first, *rest), tensor in by_path.items():
        groups.setdefault(first, {})[tuple(rest)] = tensor
    if all(isinstance(name, int) for name in groups):
        count = 1 + max(int(name) for name in groups)
        return tuple(_nested(groups[i]) if i in groups else None for i in range(count))
    return {name: _nested(group) for name, group in groups.items()}
