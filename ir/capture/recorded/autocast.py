"""Regions under `torch.autocast`: what torch casts for an operator there becomes casts of its own.

Which operands an operator of a region casts, and to what, is asked of torch: it runs once more on fake
tensors, under the same autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..torch_private import CAST, TorchDispatchMode, fake_mode_of, tree_map


class Regions:
    """The regions that a reader is in: element types, None where autocast is off."""

    def __init__(self) -> None:
        self.open: list[torch.dtype | None] = []

    def enter(self, node: fx.Node) -> None:
        """Read `_enter_autocast(device, dtype, enabled, cache)`."""
        _, dtype, enabled, *_ = node.args
        self.open.append(dtype if enabled else None)  # type: ignore[arg-type]

    def leave(self) -> None:
        self.open.pop()

    def casts(self, node: fx.Node) -> dict[fx.Node, torch.dtype]:
        """Operands of an operator that this region casts, and their types."""
        dtype = self.open[-1] if self.open else None
        if dtype is None:
            return {}
        nodes = {id(n.meta["val"]): n for n in node.all_input_nodes if _is_float(n.meta.get("val"))}
        if not nodes:
            return {}
        mode = fake_mode_of(next(iter(nodes.values())).meta["val"])
        values = tree_map(_value, (node.args, node.kwargs))
        autocast = torch.autocast("cpu", dtype=dtype, cache_enabled=False)
        with mode, _Casts(nodes.keys()) as seen, torch.no_grad(), autocast:
            node.target(*values[0], **values[1])  # type: ignore[operator]
        return {nodes[key]: type_ for key, type_ in seen.types.items()}


def _value(leaf: Any) -> Any:
    return leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class _Casts(TorchDispatchMode):
    """Notes which of some tensors, by identity, are cast to what."""

    def __init__(self, operands: Any) -> None:
        super().__init__()
        self.operands, self.types = set(operands), dict[int, torch.dtype]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is CAST and id(args[0]) in self.operands and "dtype" in kwargs:
            self.types.setdefault(id(args[0]), kwargs["dtype"])
        return func(*args, **kwargs)
