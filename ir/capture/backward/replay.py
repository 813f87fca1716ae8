"""Run the operators of a body under autograd, the user's own backwards where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor

from ...analysis.liveness import needed_ops
from ...model.model import Argument, Op, Ref
from ..execute import run_op
from ..operators.user_backward import TANGENT, USER_BACKWARD


class BackwardReplay:
    """Operators of a body, of which those that depend on a tangent wait for backward.

    `values` has the body's inputs and is filled by whoever runs the forward operators.
    """

    def __init__(self, ops: Sequence[Op], values: dict[int, Tensor]) -> None:
        self.values = values
        waiting: set[int] = set()
        self.forward_ops: list[Op] = []
        self.backward_ops: list[Op] = []
        for op in ops:
            if op.target == TANGENT:
                waiting.update(op.results)
            elif op.target != USER_BACKWARD and not waiting.isdisjoint(op.operands()):
                waiting.update(op.results)
                self.backward_ops.append(op)
            else:
                self.forward_ops.append(op)
        self.arrived: dict[int, Tensor] = {}
        self.closing = {
            op.args[5]: op for op in ops if op.target == USER_BACKWARD and references(op.args[6])
        }

    def run(self, op: Op) -> tuple[Tensor, ...]:
        """One forward operator."""
        if op.target != USER_BACKWARD:
            return run_op(op, self.values.__getitem__)
        results, inputs = (self.tensors(a) for a in op.args[:2])
        made: tuple[Tensor, ...] = _UserBackward.apply(self, op, len(results), *results, *inputs)
        return made

    def tensors(self, argument: Argument) -> list[Tensor]:
        return [self.values[v] for v in references(argument)]

    def gradients(self, op: Op, arriving: Sequence[Tensor]) -> list[Tensor | None]:
        """What the user's backward makes of the gradients of an operator's results."""
        self.arrived.update(zip(references(op.args[2]), arriving, strict=True))
        wanted = op.args[3]
        if op.args[5] != -1 and not references(op.args[6]):  # the inputs of a module with a hook
            closing = self.closing.get(op.args[5])
            if closing is None or self.arrived.keys().isdisjoint(references(closing.args[2])):
                return list(arriving)
            wanted = closing.args[6]
        assert isinstance(wanted, tuple)
        values = {**self.values, **self.arrived}
        ends = set(references(wanted))
        for step in needed_ops(self.backward_ops, ends):
            mark = {"invocation": int(step.scope or 0)}
            with torch.fx.traceback.annotate(mark):
                made = run_op(step, values.__getitem__)
            values.update(zip(step.results, made, strict=True))
        return [values[w.value] if isinstance(w, Ref) else None for w in wanted]


def references(argument: Argument) -> list[int]:
    """The values in a list argument."""
    assert isinstance(argument, tuple)
    return [part.value for part in argument if isinstance(part, Ref)]


class _UserBackward(torch.autograd.Function):
    """Results as they are; their gradients by the recorded backward."""

    @staticmethod
    def forward(ctx: Any, replay: BackwardReplay, op: Op, count: int, *tensors: Tensor) -> Any:
        ctx.replay, ctx.op, ctx.count = replay, op, count
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found = ctx.replay.gradients(ctx.op, gradients)
        return (None, None, None, *[None] * ctx.count, *found)
