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
        autocast = torch.autocast("cpu", dtype=dtype, cache_enabled=False)
        with mode, torch.no_grad():
            with autocast:
                cast = _casts(node, {key: n.meta["val"] for key, n in nodes.items()})
            # attention in half precision computes in single precision, with or without autocast
            always = _casts(node, {key: n.meta["val"].to(dtype) for key, n in nodes.items()})
        return {
            n: cast[key]
            for key, n in nodes.items()
            if key in cast and (n.meta["val"].dtype != dtype or always.get(key) != cast[key])
        }


def _casts(node: fx.Node, values: dict[int, torch.Tensor]) -> dict[int, torch.dtype]:
    """To what an operator casts some of its operands, which have these values."""

    def value(leaf: Any) -> Any:
        recorded = leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf
        return values.get(id(recorded), recorded)

    args, kwargs = tree_map(value, (node.args, node.kwargs))
    with _Casts(map(id, values.values())) as seen:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return {key: seen.types[id(v)] for key, v in values.items() if id(v) in seen.types}


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
