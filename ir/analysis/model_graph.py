"""The graph of a model's calls: who makes a value, who reads it, and what fills a function's inputs."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from ..model.model import Call, Function, Input, Model, Output


class CallEnd(NamedTuple):
    """A position among the results or the arguments of a call, which has this number."""

    call: int
    position: int


class ModelGraph:
    """The calls of a model as a graph of named values; computed once and passed to all who ask."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.functions = {f.name: f for f in model.functions}

    def function(self, call: int) -> Function:
        """The function that a call runs."""
        return self.functions[self.model.calls[call].function]

    def maker(self, value: str) -> CallEnd | None:
        """The call, and the position among its results, that makes a value; None for batch inputs."""
        return self._makers.get(value)

    def readers(self, value: str) -> tuple[CallEnd, ...]:
        """The calls, and the positions among their arguments, that read a value, in order."""
        return self._readers.get(value, ())

    def parameters(self, call: int) -> tuple[tuple[str, Input], ...]:
        """Names of parameters and buffers, and the function's inputs that they fill."""
        function = self.function(call)
        return tuple(zip(self._call(call).parameters, function.state_inputs(), strict=True))

    def arguments(self, call: int) -> tuple[tuple[str, Input], ...]:
        """Names of arguments, and the function's inputs that they fill."""
        return tuple(
            zip(self._call(call).arguments, self.function(call).activations(), strict=True)
        )

    def results(self, call: int) -> tuple[tuple[str, Output], ...]:
        """Names of results, and the function's outputs that they are."""
        return tuple(zip(self._call(call).results, self.function(call).outputs, strict=True))

    def updates(self, function: str) -> frozenset[int]:
        """Values of a function that some call of it takes for the new values of buffers."""
        return self._updates.get(function, frozenset())

    @cached_property
    def batch_only(self) -> frozenset[int]:
        """Calls that depend on the batch alone."""
        return self.model.batch_only_calls()

    @cached_property
    def reached(self) -> frozenset[str]:
        """Names of parameters that a gradient reaches from the loss; in eager, all others have none."""
        reached = {self.model.loss}
        for number in reversed(range(len(self.model.calls))):
            tangents = {o.tangent for name, o in self.results(number) if name in reached}
            tangents.discard(None)
            depends = _tangents(self.function(number)) if tangents else {}
            for name, item in (*self.parameters(number), *self.arguments(number)):
                if tangents and item.gradient is not None:
                    read = depends[item.gradient]
                    if not read or not read.isdisjoint(tangents):
                        reached.add(name)
        return frozenset(p.name for p in self.model.parameters if p.name in reached)

    @cached_property
    def _updates(self) -> dict[str, frozenset[int]]:
        updates: dict[str, frozenset[int]] = {}
        for number, call in enumerate(self.model.calls):
            written = {result for result, _ in call.updates}
            values = {output.value for name, output in self.results(number) if name in written}
            updates[call.function] = updates.get(call.function, frozenset()) | values
        return updates

    @cached_property
    def _makers(self) -> dict[str, CallEnd]:
        return {
            name: CallEnd(number, position)
            for number, call in enumerate(self.model.calls)
            for position, name in enumerate(call.results)
        }

    @cached_property
    def _readers(self) -> dict[str, tuple[CallEnd, ...]]:
        readers: dict[str, list[CallEnd]] = {}
        for number, call in enumerate(self.model.calls):
            for position, name in enumerate(call.arguments):
                readers.setdefault(name, []).append(CallEnd(number, position))
        return {name: tuple(ends) for name, ends in readers.items()}

    def _call(self, number: int) -> Call:
        return self.model.calls[number]


def _tangents(function: Function) -> dict[int, frozenset[int]]:
    """By value, the gradients of a function's outputs that it depends on."""
    tangents = {o.tangent for o in function.outputs if o.tangent is not None}
    depends = {v: frozenset({v} & tangents) for v in range(len(function.types))}
    for op in function.ops:
        read = frozenset[int]().union(*(depends[v] for v in op.operands()))
        depends.update((r, read) for r in op.results if r >= 0)
    return depends
