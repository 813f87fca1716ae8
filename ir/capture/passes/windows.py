"""Strided views of memory, as the windows along a dimension that they are."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, fx

from ...model.model import Argument

STRIDED, UNFOLD = "aten.as_strided.default", "aten.unfold.default"
Call = tuple[str, tuple[Argument, ...]]


def windows(node: fx.Node, args: tuple[Argument, ...]) -> Call:
    """`as_strided` as `unfold`, where its last two dims are all windows along the last dim of a tensor
    that is contiguous, and the others are those of the tensor; else as it is."""
    source: Any = node.args[0]
    x: Tensor = source.meta["val"]
    shape, strides, *first = (node.args[1], node.args[2], *node.args[3:])
    if len(cast(list[int], shape)) < 2:
        return STRIDED, args
    *outer, count, width = cast(list[int], shape)
    *outer_steps, step, inner = cast(list[int], strides)
    plain = x.is_contiguous() and x.storage_offset() == 0 and first in ([], [0], [None])
    same = outer == list(x.shape[:-1]) and outer_steps == list(x.stride()[:-1])
    if not plain or not same or inner != 1 or step == 0:
        return STRIDED, args
    if (x.shape[-1] - width) // step + 1 != count:
        return STRIDED, args
    return UNFOLD, (args[0], x.dim() - 1, width, step)
