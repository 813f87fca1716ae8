"""The flat graph that capture works on before outlining: numbered values, operators in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..analysis.liveness import needed_ops
from ..model.model import Argument, ModelInput, Op, Parameter, Ref, map_refs
from ..model.tensor import TensorType

KEY_TYPE = TensorType((2,), "int64")
# operators whose results carry no gradient of their operands
CONSTANTS = ("aten.detach.default", "plait.tangent.default")


@dataclass
class FlatGraph:
    """Values are numbered; parameters, inputs and the random key come first.

    Until outlining, `Op.scope` holds the number of the module invocation that ran the operator.
    `updates` maps a buffer's name to the value it takes after the step; `returned` are the values
    that the model's caller gets beside the loss.
    """

    types: list[TensorType] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    parameters: dict[int, Parameter] = field(default_factory=dict)
    inputs: dict[int, ModelInput] = field(default_factory=dict)
    trainable: set[int] = field(default_factory=set)
    key: int = -1
    loss: int = -1
    updates: dict[str, int] = field(default_factory=dict)
    returned: tuple[int, ...] = ()

    def value(self, type_: TensorType) -> int:
        self.types.append(type_)
        return len(self.types) - 1

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        types: tuple[TensorType | None, ...],
        kwargs: dict[str, Argument] | None = None,
        scope: str = "",
    ) -> tuple[int, ...]:
        """Append one operator. Return its result values, -1 where a type is None."""
        results = tuple(-1 if t is None else self.value(t) for t in types)
        self.ops.append(Op(target, args, kwargs or {}, results, scope))
        return results

    def differentiable(self) -> set[int]:
        """Values that carry a gradient from a trainable parameter."""
        carrying = set(self.trainable)
        for op in self.ops:
            if op.target not in CONSTANTS and not carrying.isdisjoint(op.operands()):
                carrying.update(r for r in op.results if r >= 0 and self.types[r].differentiable)
        return carrying

    def wanted(self) -> set[int]:
        """Values on a path from a trainable parameter to the loss, which need a gradient."""
        carrying = self.differentiable()
        wanted = {self.loss} & carrying
        for op in reversed(self.ops):
            if not wanted.isdisjoint(op.results):
                wanted.update(v for v in op.operands() if v in carrying)
        return wanted

    def outputs(self) -> set[int]:
        return {self.loss, *self.updates.values(), *self.returned}

    def drop_dead(self) -> None:
        """Remove operators without used results; unused results of others become -1."""
        self.ops = list(needed_ops(self.ops, self.outputs()))


def replace(op: Op, **changes: Any) -> Op:
    """`op` with some fields changed."""
    fields = {name: getattr(op, name) for name in op.__struct_fields__}
    return Op(**{**fields, **changes})


def arguments(op: Op, *defaults: Argument) -> list[Argument]:
    """Positional arguments, completed by `defaults`."""
    return [*op.args, *defaults[len(op.args) :]]


def substitute(op: Op, values: dict[int, int]) -> Op:
    """The operator with operands replaced by `values`; others stay."""
    if values.keys().isdisjoint(op.operands()):
        return op

    def renamed(value: int) -> Argument:
        return Ref(values[value] if value in values else value)

    args = tuple(map_refs(a, renamed) for a in op.args)
    kwargs = {name: map_refs(a, renamed) for name, a in op.kwargs.items()}
    return replace(op, args=args, kwargs=kwargs)
