"""Track aliases: writes to a tensor, or to memory that it views, become new values."""

from __future__ import annotations

import msgspec

from ...errors import TraceError
from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..graph import CONSTANTS, FlatGraph, substitute
from .views import write_back

Kwargs = dict[str, Argument]
DETACH = "aten.detach.default"


class AliasTracker:
    """Emits operators into a graph and tracks aliases and gradients.

    A view is stored as (tensor, operator, result position), so that it can be recomputed from the
    tensor's newest value. `carrying`: values that carry a gradient.
    """

    def __init__(self, graph: FlatGraph) -> None:
        self.graph = graph
        self.carrying: set[int] = set()
        self.newest: dict[int, int] = {}
        self.views: dict[int, tuple[int, Op, int]] = {}
        self.recomputed: dict[tuple[int, int], int] = {}

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
        if carries and target not in CONSTANTS:
            floats = (r for r in results if r >= 0 and self.graph.types[r].differentiable)
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
        target = TensorType(type_.shape, dtype)
        return self.emit("aten._to_copy.default", (Ref(value),), (target,), kwargs, scope)[0]

    def view(self, value: int, source: int, op: Op, position: int) -> None:
        """Record that `value`, result `position` of `op`, is a view of `source`."""
        current = self.resolve(source)
        view_op = substitute(op, {current: source}) if current != source else op
        self.views[value] = (source, view_op, position)

    def resolve(self, value: int) -> int:
        """The newest value of a tensor."""
        if value not in self.views:
            while value in self.newest:
                value = self.newest[value]
            return value
        parent, op, position = self.views[value]
        current = self.resolve(parent)
        if current == parent:
            return value
        if (value, current) not in self.recomputed:
            types = tuple(self.graph.types[r] for r in op.results)
            changed = substitute(op, {parent: current})
            results = self.emit(op.target, changed.args, types, changed.kwargs, op.scope)
            self.recomputed[value, current] = results[position]
        return self.recomputed[value, current]

    def assign(self, tensor: int, value: int, scope: str) -> None:
        """Make `value` the newest value of `tensor`, and write it back to the memory it views."""
        while tensor in self.views:
            parent, op, _ = self.views[tensor]
            name, args, type_ = write_back(self.graph, op, self.resolve(parent), value)
            (full,) = self.emit(name, args, (type_,), None, scope)
            self.recomputed[tensor, full] = value
            tensor, value = parent, full
        parameter = self.graph.parameters.get(tensor)
        if parameter is not None and parameter.kind == "parameter":
            if parameter.trainable:
                raise TraceError(
                    f"the forward writes into parameter {parameter.name}; only buffers and frozen "
                    "parameters may change. Change it under torch.no_grad() behind the optimizer's step "
                    "(as for max_norm of embeddings: embedding_renorm_), or use what it would be: "
                    "weight * scale"
                )
            self.graph.parameters[tensor] = msgspec.structs.replace(parameter, kind="buffer")
        if parameter is not None and parameter.kind == "constant":
            raise TraceError(
                "the forward writes into a tensor that is neither a parameter nor a buffer: its new "
                "value would be lost after the step; use register_buffer"
            )
        last = self.resolve(tensor)
        if last != value:
            self.newest[last] = value
