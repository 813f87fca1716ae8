"""Hooks on gradients while a recording is read: a hooked tensor is another value from there on.

Hooks of parameters were recorded first of all. They are read where the parameter is used first, as
operators of the module that uses it, so that they stay in one function with it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ...errors import TraceError


class Rebinding:
    """`reader` is the one that meets the nodes."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.deferred: dict[str, list[fx.Node]] = {}
        self.names: dict[fx.Node, str] = {}
        self.used: set[fx.Node] = set()

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

    def note_use(self, argument: fx.Node, custom: dict[str, Any]) -> None:
        if "rebind" not in custom:
            self.used.add(argument)

    def rebind(self, node: fx.Node, results: tuple[int, ...]) -> None:
        """The inputs of a hook stand for its results from here on."""
        for argument, result in zip(node.args[1], results, strict=True):  # type: ignore[arg-type]
            if argument in self.used:
                raise TraceError(
                    "a hook is registered on a tensor that was used before; register it right after "
                    "the tensor is made"
                )
            self.reader.values[argument] = result
