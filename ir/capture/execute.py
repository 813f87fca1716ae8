"""Interpret a model on tensors: the reference for generated programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..analysis.liveness import last_uses
from ..analysis.model_graph import ModelGraph
from ..model.model import Call, Function, Model, Op
from ..ops.contiguous import contiguous_operands
from .literals import DTYPES, decode
from .operators.elementary import call_key
from .resolve import resolve

# A view of a shard, or after a removed copy, may need a copy.
AS_RESHAPE = frozenset({"aten.view.default", "aten._unsafe_view.default"})


def run_ops(
    ops: Sequence[Op], environment: Mapping[int, Tensor], wanted: Iterable[int]
) -> dict[int, Tensor]:
    """Run operators in order on numbered values. Return `wanted`; free others after last use."""
    wanted = set(wanted)
    values: dict[int, Any] = dict(environment)
    for op, ending in zip(ops, last_uses(tuple(ops), wanted), strict=True):
        tensors = run_op(op, values.__getitem__)
        for result, tensor in zip(op.results, tensors, strict=True):
            if result >= 0:
                values[result] = tensor
        for value in ending:
            values.pop(value, None)
    return {value: values[value] for value in wanted}


def run_op(op: Op, value: Any) -> tuple[Tensor, ...]:
    """Run one operator; `value` gives the tensor of an operand. One tensor per `op.results`."""
    dense = contiguous_operands(op)

    def read(number: int) -> Tensor:
        return value(number).contiguous() if number in dense else value(number)

    args = [decode(a, read) for a in op.args]
    kwargs = {name: decode(a, read) for name, a in op.kwargs.items()}
    target = "aten.reshape.default" if op.target in AS_RESHAPE else op.target
    made = resolve(target)(*args, **kwargs)
    return tuple(made) if isinstance(made, list | tuple) else (made,)


class StepValues(NamedTuple):
    """What a step gives: loss, gradients by parameter name, new values by buffer name."""

    loss: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def execute(
    model: Model,
    parameters: Mapping[str, Tensor],
    batch: Sequence[Tensor],
    *,
    seed: int = 0,
    step: int = 0,
    gradients: bool = True,
) -> StepValues:
    """Run one training step.

    `parameters`: parameters and buffers by first name. `batch`: tensors in the order of
    `model.inputs`. Random operators draw from (seed, step, number of the call).
    """
    run = _Interpreter(
        model, dict(parameters), dict(zip((i.name for i in model.inputs), batch, strict=True))
    )
    with torch.no_grad():
        for number, call in enumerate(model.calls):
            run.forward(call, call_key(seed, step, number))
        if gradients:
            run.gradients[model.loss] = torch.ones_like(run.values[model.loss])
            for number, call in reversed(list(enumerate(model.calls))):
                run.backward(call, call_key(seed, step, number))
    gradient_of = run.parameter_gradients
    reached = ModelGraph(model).reached
    trained = {
        p.name: gradient_of.get(p.name)
        for p in model.parameters
        if p.trainable and p.name in reached
    }
    buffers = {b: run.values[r] for call in model.calls for r, b in call.updates}
    known = {n: g for n, g in trained.items() if g is not None}
    return StepValues(run.values[model.loss], known, buffers)


class _Interpreter:
    def __init__(self, model: Model, state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        self.functions = {f.name: f for f in model.functions}
        self.state, self.values = state, values
        for parameter in model.parameters:
            if parameter.kind == "constant":
                self.state[parameter.name] = constant(parameter.values or (), parameter.type)
        self.gradients: dict[str, Tensor] = {}
        self.parameter_gradients: dict[str, Tensor] = {}
        device = next(iter([*values.values(), *state.values()]), torch.zeros(())).device
        self.device = device

    def inputs(self, function: Function, call: Call, key: int) -> dict[int, Tensor]:
        tensors = [self.state[n] for n in call.parameters] + [
            self.values[n] for n in call.arguments
        ]
        if function.random:
            tensors.append(torch.tensor([key, 0], device=self.device))
        return {i.value: t for i, t in zip(function.inputs, tensors, strict=True)}

    def forward(self, call: Call, key: int) -> None:
        function = self.functions[call.function]
        wanted = [o.value for o in function.outputs]
        results = run_ops(function.forward_ops, self.inputs(function, call, key), wanted)
        for name, value in zip(call.results, wanted, strict=True):
            self.values[name] = results[value]

    def backward(self, call: Call, key: int) -> None:
        function = self.functions[call.function]
        environment = self.inputs(function, call, key)
        for name, output in zip(call.results, function.outputs, strict=True):
            if output.tangent is not None:
                zero = torch.zeros_like(self.values[name])
                environment[output.tangent] = self.gradients.pop(name, zero)
        wanted = [i.gradient for i in function.inputs if i.gradient is not None]
        if not wanted:
            return
        gradients = run_ops(function.ops, environment, wanted)
        names = (*call.parameters, *call.arguments, *(("",) if function.random else ()))
        for name, item in zip(names, function.inputs, strict=True):
            if item.gradient is not None:
                totals = self.gradients if item.kind == "activation" else self.parameter_gradients
                total, gradient = totals.get(name), gradients[item.gradient]
                totals[name] = gradient if total is None else total + gradient


def constant(values: Sequence[float], type_: Any) -> Tensor:
    """The tensor of a constant parameter."""
    return torch.tensor(values, dtype=DTYPES[type_.dtype]).reshape(type_.shape)
