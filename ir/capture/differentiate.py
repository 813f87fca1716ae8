"""Derive a function's joint graph by recording its forward and vector-Jacobian product."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.fx.traceback
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..analysis.liveness import needed_ops
from ..errors import TraceError
from ..model.model import Function, Input, ModelInput, Op, Output, Ref
from ..model.tensor import TensorType
from ..passes import Observer, Pass, run
from .backward.replay import BackwardReplay
from .backward.row_gradients import recorded_dense, tables_of_rows, with_row_gradients
from .decompositions.of_torch import torch_decompositions
from .export import Invocation, Recording
from .graph import replace, substitute
from .literals import DTYPES
from .passes.constants import UnsupportedNode
from .passes.functionalize import read_outputs
from .passes.simplify import JointGraph, Simplify
from .torch_private import FakeTensorMode

InputKind = Literal["parameter", "buffer", "activation", "key"]


@dataclass(frozen=True)
class BodyInput:
    """An input of a function body: its value in the flat graph; `wanted`: it needs a gradient."""

    value: int
    kind: InputKind
    name: str
    wanted: bool


@dataclass(frozen=True)
class FunctionBody:
    """Operators of the flat graph that become a function; outputs are (value, needs a gradient)."""

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[BodyInput, ...]
    outputs: tuple[tuple[int, bool], ...]


class Differentiate(Pass[FunctionBody, Function], frozen=True):
    """Derive the joint graph of a body whose values have these `types`.

    `scopes` and `lines` map the invocation numbers in `Op.scope` to module paths and lines. Raises
    TraceError where no gradient can be derived.
    """

    types: Sequence[TensorType]
    scopes: dict[str, str]
    lines: dict[str, str]
    observer: Observer | None = None
    name = "differentiate"

    def apply(self, value: FunctionBody) -> Function:
        try:
            recording, derived = _record(value, self.types)
            graph, outputs = read_outputs(recording)
        except UnsupportedNode as error:
            raise TraceError(f"in {value.name}: {error}") from error
        value = _derived(value, derived)
        joint = run(Simplify(), JointGraph(graph.ops, graph.types, outputs), self.observer)
        joint = _with_row_gradients(joint, value)
        joint = _apart_from_parameters(joint, value)
        results = joint.outputs[: len(value.outputs)]
        needed = list(needed_ops(joint.ops, set(results)))
        forward_values = {r for op in needed for r in op.results if r >= 0}
        backward = [op for op in joint.ops if forward_values.isdisjoint(op.results)]
        forward = [op for op in joint.ops if not forward_values.isdisjoint(op.results)]
        return self.numbered(value, forward, backward, joint)

    def numbered(
        self, body: FunctionBody, forward: list[Op], backward: list[Op], joint: JointGraph
    ) -> Function:
        """Build the function, values numbered: inputs, tangents, then results in order."""
        input_count, tangent_count = len(body.inputs), sum(wanted for _, wanted in body.outputs)
        results, gradients = joint.outputs[: len(body.outputs)], joint.outputs[len(body.outputs) :]
        number = {value: value for value in range(input_count + tangent_count)}
        for op in (*forward, *backward):
            for result in op.results:
                if result >= 0:
                    number[result] = len(number)
        types = tuple(joint.types[value] for value in number)
        ops = tuple(
            replace(
                substitute(op, number),
                results=tuple(-1 if r < 0 else number[r] for r in op.results),
                scope=self.scopes.get(op.scope, ""),
                line=self.lines.get(op.scope, ""),
            )
            for op in (*forward, *backward)
        )
        queue = iter(gradients)
        inputs = tuple(
            Input(n, i.kind, i.name, number[next(queue)] if i.wanted and gradients else None)
            for n, i in enumerate(body.inputs)
        )
        tangent = iter(range(input_count, input_count + tangent_count))
        outputs = tuple(
            Output(number[r], next(tangent) if wanted else None)
            for r, (_, wanted) in zip(results, body.outputs, strict=True)
        )
        return Function(body.name, types, inputs, outputs, ops, len(forward))


def _with_row_gradients(joint: JointGraph, body: FunctionBody) -> JointGraph:
    """Gradients as rows for the tables of which the body's embeddings ask for that."""
    tables = tables_of_rows(body.ops)
    wanted = [item.value in tables for item in body.inputs if item.wanted]
    gradients = joint.outputs[len(body.outputs) :]
    rows = [g for g, is_table in zip(gradients, wanted, strict=False) if is_table]
    return joint._replace(ops=with_row_gradients(joint.ops, rows)) if rows else joint


def _apart_from_parameters(joint: JointGraph, body: FunctionBody) -> JointGraph:
    """Results that are parameters as copies, which may lie elsewhere than the parameter does."""
    ops, types, outputs = list(joint.ops), list(joint.types), list(joint.outputs)
    for number, result in enumerate(outputs[: len(body.outputs)]):
        if result < len(body.inputs) and body.inputs[result].kind == "parameter":
            outputs[number] = len(types)
            ops.append(Op("aten.clone.default", (Ref(result),), {}, (len(types),)))
            types.append(types[result])
    return JointGraph(ops, types, tuple(outputs))


def _derived(body: FunctionBody, derived: Sequence[bool]) -> FunctionBody:
    """The body, in which no input is wanted that autograd has no gradient for."""
    queue = iter(derived)
    inputs = [dataclasses.replace(i, wanted=i.wanted and next(queue, False)) for i in body.inputs]
    return dataclasses.replace(body, inputs=tuple(inputs))


def _record(body: FunctionBody, types: Sequence[TensorType]) -> tuple[Recording, tuple[bool, ...]]:
    """The joint graph of a body, and which of its wanted inputs there are gradients for."""
    derived: list[bool] = []
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    tangent_types = [types[value] for value, wanted in body.outputs if wanted]
    with fake_mode:
        tensors = [_fake(types[i.value]).requires_grad_(i.wanted) for i in body.inputs]
        tangents = [_fake(t) for t in tangent_types]

    def joint(tensors: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
        outs, wanted = _forward(body, tensors)
        sources = [t for t, i in zip(tensors, body.inputs, strict=True) if i.wanted]
        if not tangents or not sources:
            return outs
        pairs = [(o, t) for o, t in zip(wanted, tangents, strict=True) if o.requires_grad]
        targets, seeds = [o for o, _ in pairs], [t for _, t in pairs]
        gradients = torch.autograd.grad(targets, sources, seeds, allow_unused=True)
        derived[:] = [g is not None for g in gradients]
        return outs + [g for g in gradients if g is not None]

    with fake_mode, torch.enable_grad(), torch.fx.traceback.preserve_node_meta():
        try:
            graph = make_fx(joint, torch_decompositions())(tensors, tangents)
        except (RuntimeError, NotImplementedError) as error:
            text = str(error).split("\n")[0]
            raise TraceError(f"in {body.name}: no gradient can be derived: {text}") from error
    inputs = [types[i.value] for i in body.inputs] + tangent_types
    described = [ModelInput(f"x{n}", t, (n,), False) for n, t in enumerate(inputs)]
    return Recording(graph, [], described, [Invocation("", "", -1)]), tuple(derived)


def _forward(body: FunctionBody, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run the body. Return all outputs, and those that need a gradient."""
    values = {i.value: t for i, t in zip(body.inputs, tensors, strict=True)}
    seen: dict[int, Any] = {}
    replay = BackwardReplay(body.ops, values)
    for op in replay.forward_ops:
        mark = {"invocation": int(op.scope or 0)}
        with torch.fx.traceback.annotate(mark):
            tensors_out = replay.run(recorded_dense(op))
        values.update(zip(op.results, tensors_out, strict=True))
        for tensor in tensors_out:
            if tensor is not None:  # as a backward operator gives for what needs no gradient
                _mark_backward(tensor.grad_fn, mark, seen)
    wanted = [values[value] for value, wants in body.outputs if wants]
    return [values[value].detach() for value, _ in body.outputs], wanted


def _mark_backward(node: Any, mark: dict[str, int], seen: dict[int, Any]) -> None:
    """Annotate operators of new autograd nodes with the module that their forward belongs to."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        waiting += [before for before, _ in node.next_functions]
        enter, leave = _hooks(torch.fx.traceback.annotate(mark))
        node.register_prehook(enter)
        node.register_hook(leave)


def _hooks(mark: Any) -> tuple[Any, Any]:
    """A context manager as two autograd hooks, which must return None."""

    def enter(*_: Any) -> None:
        mark.__enter__()

    def leave(*_: Any) -> None:
        mark.__exit__(None, None, None)

    return enter, leave


def _fake(type_: TensorType) -> Tensor:
    return torch.empty(type_.shape, dtype=DTYPES[type_.dtype], device="cpu")
