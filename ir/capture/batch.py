"""The batch as a flat list of tensors with paths; dicts are fed by keyword, tuples by position."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import TraceError
from ..model.model import BatchConstant, ModelInput
from ..model.tensor import TensorType
from .literals import tensor_type
from .python_state.snapshot import SCALARS

BatchPath = tuple[str | int, ...]
DEPTH = 16


def leaves(batch: Any, path: BatchPath = ()) -> list[tuple[BatchPath, torch.Tensor]]:
    """Every tensor of a batch with its path, in order. Raises TraceError beyond DEPTH levels."""
    if isinstance(batch, torch.Tensor):
        return [(path, batch)]
    if len(path) > DEPTH:
        raise TraceError(f"the batch is nested more than {DEPTH} levels deep")
    if isinstance(batch, Mapping):
        return [leaf for name, item in batch.items() for leaf in leaves(item, (*path, name))]
    if isinstance(batch, list | tuple):
        return [leaf for i, item in enumerate(batch) for leaf in leaves(item, (*path, i))]
    return []


def constants(batch: Any) -> tuple[BatchConstant, ...]:
    """Everything in a batch that is no tensor, with its path; raises TraceError for objects."""
    values = []
    for path, value in _others(batch, ()):
        if not isinstance(value, (*SCALARS, torch.dtype, torch.device)):
            where = "batch" + "".join(f"[{key!r}]" for key in path)
            raise TraceError(
                f"{where} is a {type(value).__name__}; a batch may have tensors, numbers, texts and "
                "flags, in dicts, lists and tuples"
            )
        values.append(BatchConstant(path, repr(value)))
    return tuple(values)


def _others(batch: Any, path: BatchPath) -> list[tuple[BatchPath, Any]]:
    if isinstance(batch, torch.Tensor) or len(path) > DEPTH:
        return []
    if isinstance(batch, Mapping):
        return [pair for name, part in batch.items() for pair in _others(part, (*path, name))]
    if isinstance(batch, list | tuple):
        return [pair for i, part in enumerate(batch) for pair in _others(part, (*path, i))]
    return [(path, batch)]


def rebuild(batch: Any, tensors: Callable[[BatchPath], Any], path: BatchPath = ()) -> Any:
    """Replace every tensor of a batch by `tensors(path)`."""
    if isinstance(batch, torch.Tensor):
        return tensors(path)
    if isinstance(batch, Mapping):
        return {name: rebuild(part, tensors, (*path, name)) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(rebuild(part, tensors, (*path, i)) for i, part in enumerate(batch)))
    if isinstance(batch, list | tuple):
        parts = [rebuild(part, tensors, (*path, i)) for i, part in enumerate(batch)]
        return tuple(parts) if isinstance(batch, tuple) else parts
    return batch


def call(model: torch.nn.Module, batch: Any) -> Any:
    """Call a model on a batch: a mapping by keyword, a sequence by position, else as it is."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    return model(batch)


def batch_size(tensors: list[torch.Tensor]) -> int:
    """The most common size of dimension 0 among tensors of two or more dimensions (1 for none)."""
    ranked = [t for t in tensors if t.dim() >= 2] or [t for t in tensors if t.dim() == 1]
    sizes = Counter(int(t.shape[0]) for t in ranked)
    return sizes.most_common(1)[0][0] if sizes else 1


def model_inputs(batch: Any, size: int, traced: int) -> list[ModelInput]:
    """Describe the batch's tensors; those of batch size `size` are traced at `traced`."""
    inputs, names = [], set[str]()
    for path, tensor in leaves(batch):
        batched = tensor.dim() >= 1 and int(tensor.shape[0]) == size
        type_ = tensor_type(tensor)
        if batched:
            type_ = TensorType((traced, *type_.shape[1:]), type_.dtype)
        if not all(isinstance(part, str | int) for part in path):
            raise TraceError(f"the batch's keys must be strings, not {path}")
        name = unique("_".join(map(str, path)) or "batch", names)
        inputs.append(ModelInput(name, type_, path, batched))
    return inputs


def identifier(text: str) -> str:
    """Convert any text to a Python identifier that is no keyword."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "value"
    if name[0].isdigit() or re.fullmatch(r"[hH]\d+", name):
        name = f"x_{name}"
    return f"{name}_" if keyword.iskeyword(name) or keyword.issoftkeyword(name) else name


def unique(text: str, names: set[str]) -> str:
    """Convert any text to an identifier that is not among `names`, and add it there."""
    name = base = identifier(text)
    number = 2
    while name in names:
        name, number = f"{base}_{number}", number + 1
    names.add(name)
    return name
