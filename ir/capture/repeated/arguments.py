"""What a module is called with and what it returns, taken apart into plain values.

Anything that is no tensor, number, text, flag, element type or tuple, list or dict of them may act on
its own and be changed by a call: such calls are recorded one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..python_state.snapshot import SCALARS
from ..torch_private import storage_id

PLAIN = (*SCALARS, torch.dtype, torch.device, torch.Size)


class NotPlain(Exception):
    """A value of a kind that has behaviour or state of its own."""


class TensorFacts(NamedTuple):
    """All that code can ask of a tensor without values. `first`, `storage`: places of the first tensor
    that is the same one, and of the first with the same memory."""

    kind: type
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    wants_gradient: bool
    is_leaf: bool
    first: int
    storage: int


def flattened(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of a value with its plain values, and its tensors in order in `tensors`.

    Raises NotPlain.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if isinstance(value, PLAIN):
        return kind, repr(value), value
    if kind in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return kind, tuple(flattened(v, tensors) for v in value)
    if isinstance(value, dict) and kind is dict and all(type(k) is str for k in value):
        return kind, tuple((k, flattened(v, tensors)) for k, v in value.items())
    raise NotPlain


def rebuilt(structure: Any, tensors: Iterator[Tensor]) -> Any:
    """The value that `flattened` took apart, of other tensors."""
    if structure is Tensor:
        return next(tensors)
    kind, content, *value = structure
    if value:
        return value[0]
    if kind is dict:
        return {k: rebuilt(v, tensors) for k, v in content}
    items = [rebuilt(v, tensors) for v in content]
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def facts_of(tensors: list[Tensor]) -> tuple[TensorFacts, ...]:
    identities = [id(t) for t in tensors]
    storages = [storage_id(t) for t in tensors]
    return tuple(
        TensorFacts(
            type(t),
            tuple(t.shape),
            t.stride(),
            int(t.storage_offset()),
            t.dtype,
            t.requires_grad,
            t.is_leaf,
            identities.index(id(t)),
            storages.index(storage_id(t)),
        )
        for t in tensors
    )
