"""Facts of single nodes of a recording."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from ...errors import TraceError
from ...model.model import Argument
from ..literals import dtype_name
from ..resolve import overload
from ..torch_private import OpOverload, base_name, is_operator, overload_name, schema, storage_id


class OperatorCall(NamedTuple):
    name: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]


def functional_name(target: OpOverload) -> str:
    """The operator that gives what an in-place one writes; its overload may be named otherwise."""
    base = f"{target.namespace}.{base_name(target).removesuffix('_')}"
    kinds = [str(a.type) for a in schema(target).arguments]
    packet = getattr(getattr(torch.ops, target.namespace), base.partition(".")[2], None)
    same = f"{base}.{overload_name(target)}"
    for variant in packet.overloads() if packet is not None else ():
        operator = overload(f"{base}.{variant}")
        if operator is None or schema(operator).is_mutable:
            continue
        if [str(a.type) for a in schema(operator).arguments] == kinds:
            return same if variant == overload_name(target) else f"{base}.{variant}"
    return same


def is_view(node: fx.Node, argument: fx.Node, result: torch.Tensor) -> bool:
    """Whether a result shares the memory of an argument."""
    source = argument.meta.get("val")
    if not isinstance(source, torch.Tensor) or not is_operator(node.target):
        return False
    if not any(r.alias_info is not None for r in schema(node.target).returns):
        return False
    if torch.strided not in (result.layout, source.layout):
        raise TraceError("sparse tensors are not supported: use index_add, or a dense matrix")
    return result.layout == source.layout and storage_id(result) == storage_id(source)


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
