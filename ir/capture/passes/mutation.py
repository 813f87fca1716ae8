"""Which value a tensor holds now: writes to it, or to memory that it views, as new values."""

from __future__ import annotations

from ...errors import TraceError
from ...model import Argument, Op, Ref
from ...tensor import TensorType
from ..graph import Graph, substitute
from .views import write_back

Kwargs = dict[str, Argument]
DETACH = "aten.detach.default"


class Memory:
    """Emits operators into a graph and follows aliases and gradients while it grows.

    A view is remembered as (tensor, operator, result position), so that it can be made again from
    the tensor's newest value. `carrying` are the values that carry a gradient.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.carrying: set[int] = set()
        self.newest: dict[int, int] = {}
        self.views: dict[int, tuple[int, Op, int]] = {}
        self.made_again: dict[tuple[int, int], int] = {}

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        types: tuple[TensorType | None, ...],
        kwargs: Kwargs | None = None,
        scope: str = "",
    ) -> tuple[int, ...]:
        results = self.graph.emit(target, args, types, kwargs, scope)
        carries = not self.carrying.isdisjoint(self.graph.ops[-1].operands())
        if carries and target != DETACH:
            floats = (r for r in results if r >= 0 and self.graph.types[r].is_float)
            self.carrying.update(floats)
        return results

    def detached(self, value: int, scope: str) -> int:
        """The value without its gradient."""
        if value not in self.carrying:
            return value
        return self.emit(DETACH, (Ref(value),), (self.graph.types[value],), None, scope)[0]

    def cast(self, value: int, dtype: str, scope: str) -> int:
        type_ = self.graph.types[value]
        if type_.dtype == dtype:
            return value
        kwargs: Kwargs = {"dtype": f"dtype:{dtype}"}
        made = TensorType(type_.shape, dtype)
        return self.emit("aten._to_copy.default", (Ref(value),), (made,), kwargs, scope)[0]

    def view(self, value: int, source: int, op: Op, position: int) -> None:
        """Remember that `value` shows the memory of `source`, result `position` of `op`."""
        now = self.resolve(source)
        seen = substitute(op, {now: source}) if now != source else op
        self.views[value] = (source, seen, position)

    def resolve(self, value: int) -> int:
        """The value that a tensor holds now."""
        if value not in self.views:
            while value in self.newest:
                value = self.newest[value]
            return value
        parent, op, position = self.views[value]
        now = self.resolve(parent)
        if now == parent:
            return value
        if (value, now) not in self.made_again:
            types = tuple(self.graph.types[r] for r in op.results)
            changed = substitute(op, {parent: now})
            made = self.emit(op.target, changed.args, types, changed.kwargs, op.scope)
            self.made_again[value, now] = made[position]
        return self.made_again[value, now]

    def assign(self, tensor: int, value: int, scope: str) -> None:
        """From here on `tensor` holds `value`, and so does the memory that it is a view of."""
        while tensor in self.views:
            parent, op, _ = self.views[tensor]
            name, args, type_ = write_back(self.graph, op, self.resolve(parent), value)
            (whole,) = self.emit(name, args, (type_,), None, scope)
            self.made_again[tensor, whole] = value
            tensor, value = parent, whole
        held = self.graph.parameters.get(tensor)
        if held is not None and held.kind == "parameter":
            raise TraceError(
                f"the forward writes into parameter {held.name}; only buffers may change"
            )
        last = self.resolve(tensor)
        if last != value:
            self.newest[last] = value
