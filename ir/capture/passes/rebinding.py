"""Hooks on gradients while a recording is read: a hooked tensor is another value from there on.

Hooks of parameters were recorded first of all. They are read where the parameter is used first, as
operators of the module that uses it, so that they stay in one function with it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ...errors import TraceError
from ...model.model import Op
from ..graph import substitute


class Rebinding:
    """`reader` is the one that meets the nodes."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.deferred: dict[str, list[fx.Node]] = {}
        self.names: dict[fx.Node, str] = {}
        self.unhooked: dict[fx.Node, int] = {}
        self.first: int | None = None  # of the operators of the hook that is being read

    def defer(self, name: str, node: fx.Node) -> None:
        """Keep a node of a parameter's hooks for the parameter's first use."""
        self.deferred.setdefault(name, []).append(node)

    def read_deferred(self, argument: Any) -> None:
        """Read the hooks of a parameter that is about to be used."""
        nodes = self.deferred.pop(self.names.get(argument, ""), ())
        if not nodes:
            return
        reader = self.reader
        gradients, custom = reader.gradients, reader.custom
        reader.gradients = False
        for node in nodes:
            reader.custom = node.meta["custom"]
            reader.read(node)
        reader.gradients, reader.custom = gradients, custom

    def note_use(self, custom: dict[str, Any]) -> None:
        if "rebind" in custom and self.first is None:
            self.first = len(self.reader.graph.ops)

    def rebind(self, node: fx.Node, results: tuple[int, ...]) -> None:
        """The inputs of a hook stand for its results from here on; where a tensor was used before, from
        its first use: wherever it is registered, a hook sees the sum of the gradients of all uses, and
        after the hooks that were registered before it."""
        reader = self.reader
        for argument, result in zip(node.args[1], results, strict=True):  # type: ignore[arg-type]
            value = reader.single(argument)
            bare = self.unhooked.setdefault(argument, value)
            self.move_to_first_use(bare, value, result)
            if value == bare:
                reader.values[argument] = result
        self.first = None

    def move_to_first_use(self, bare: int, value: int, result: int) -> None:
        """Put the hook that is being read before the first use of its tensor, which is `bare` without
        hooks and `value` with those before."""
        ops: list[Op] = self.reader.graph.ops
        start = self.first
        assert start is not None
        place = next((n for n, op in enumerate(ops[:start]) if bare in op.operands()), start)
        if place == start:
            return
        hook = [substitute(op, {value: bare}) for op in ops[start:]]
        later = {r for op in ops[place:start] for r in op.results}
        if self.reader.aliases.resolve(bare) != bare or any(
            not later.isdisjoint(op.operands()) for op in hook
        ):
            raise TraceError(
                "a hook is registered on a tensor that was used before, and needs what was computed "
                "(or written into the tensor) since; register it right after the tensor is made"
            )
        ops[place:] = [*hook, *(substitute(op, {bare: result}) for op in ops[place:start])]
