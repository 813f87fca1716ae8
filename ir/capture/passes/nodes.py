"""Facts of single nodes of a recording."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from ...model.model import Argument
from ..literals import dtype_name
from ..torch_private import is_operator, schema, storage_id


class OperatorCall(NamedTuple):
    name: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]


def is_view(node: fx.Node, argument: fx.Node, result: torch.Tensor) -> bool:
    """Whether a result shares the memory of an argument."""
    source = argument.meta.get("val")
    if not isinstance(source, torch.Tensor) or not is_operator(node.target):
        return False
    if not any(r.alias_info is not None for r in schema(node.target).returns):
        return False
    return storage_id(result) == storage_id(source)


def promoted(node: fx.Node, base: str, dtype: str) -> str:
    """The element type that the out-of-place form of an arithmetic operator gives."""
    if base not in ("add", "sub", "mul", "div", "pow"):
        return dtype
    for argument in node.all_input_nodes:
        other = argument.meta.get("val")
        if isinstance(other, torch.Tensor) and other.dim() > 0:
            dtype = dtype_name(torch.promote_types(getattr(torch, dtype), other.dtype))
    return dtype


def cast(node: fx.Node, args: tuple[Argument, ...]) -> OperatorCall:
    """Every overload of `to` is a change of element type; devices are the plan's business."""
    return OperatorCall(
        "aten._to_copy.default", args[:1], {"dtype": f"dtype:{dtype_name(node.meta['val'].dtype)}"}
    )


def flat(argument: Any) -> list[fx.Node]:
    if isinstance(argument, list | tuple):
        return [node for part in argument for node in flat(part)]
    return [argument] if isinstance(argument, fx.Node) else []
