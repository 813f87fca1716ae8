"""Convert literal arguments of torch operators to JSON-ready values, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..errors import FileError, TraceError
from ..model.model import Argument, Ref, complex_number
from ..model.tensor import ITEM_BYTES, TensorType

# Arguments that say where a tensor is; the plan decides that, not the model.
PLACEMENT = frozenset({"device", "layout", "pin_memory", "non_blocking"})
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
FORMATS: dict[str, torch.memory_format] = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}
FLOATS = ("inf", "-inf", "nan")


def dtype_name(dtype: torch.dtype) -> str:
    """`"float32"`; raises TraceError for element types that the IR does not have."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TraceError(f"element type {name} is not supported; supported: {', '.join(DTYPES)}")
    return name


def tensor_type(tensor: torch.Tensor) -> TensorType:
    return TensorType(tuple(int(size) for size in tensor.shape), dtype_name(tensor.dtype))


def encode(value: Any, ref: Callable[[Any], Ref | None]) -> Argument:
    """Convert an FX argument to an IR argument; `ref` gives the use of a graph node, else None.

    Raises TraceError for kinds that the IR does not have.
    """
    use = ref(value)
    if use is not None:
        return use
    if isinstance(value, list | tuple):
        return tuple(encode(part, ref) for part in value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else f"float:{value}"
    if isinstance(value, complex):
        return f"complex:{value}"
    if isinstance(value, torch.dtype):
        return f"dtype:{dtype_name(value)}"
    if isinstance(value, torch.memory_format):
        return f"memory_format:{str(value).removeprefix('torch.')}"
    if isinstance(value, torch.device | torch.layout):
        return None
    raise TraceError(f"an operator argument of kind {type(value).__name__} is not supported")


def decode(argument: Argument, value: Callable[[int], Any]) -> Any:
    """Convert an IR argument for torch; `value` gives the tensor of a use. Raises FileError."""
    if isinstance(argument, Ref):
        return value(argument.value)
    if isinstance(argument, tuple):
        return [decode(part, value) for part in argument]
    if isinstance(argument, str):
        return _decode_text(argument)
    return argument


def _decode_text(text: str) -> Any:
    kind, colon, name = text.partition(":")
    if colon:
        if kind == "dtype" and name in DTYPES:
            return DTYPES[name]
        if kind == "memory_format" and name in FORMATS:
            return FORMATS[name]
        if kind == "float" and name in FLOATS:
            return float(name)
        if kind == "complex" and (number := complex_number(name)) is not None:
            return number
        if kind in ("dtype", "memory_format", "float", "complex"):
            raise FileError(f"literal {text!r} is unknown; known dtypes: {', '.join(DTYPES)}")
    return text
