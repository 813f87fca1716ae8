"""Derive a function's joint graph: record its forward and the vector-Jacobian product once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.fx.traceback
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import TraceError
from ..model import Function, Input, ModelInput, Op, Output
from ..tensor import TensorType
from .execute import run_op
from .export import Invocation, Recording
from .graph import live_ops, replace, substitute
from .literals import DTYPES
from .passes.functionalize import Unsupported, read_outputs
from .passes.simplify import simplify

Kind = Literal["parameter", "buffer", "activation", "key"]


@dataclass(frozen=True)
class Given:
    """An input of a function to be: its value in the flat graph, does it want a gradient."""

    value: int
    kind: Kind
    name: str
    wanted: bool


@dataclass(frozen=True)
class Body:
    """A piece of the flat graph that becomes a function; outputs are (value, wants a gradient)."""

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Given, ...]
    outputs: tuple[tuple[int, bool], ...]


def differentiate(body: Body, types: Sequence[TensorType], scopes: dict[str, str]) -> Function:
    """The function of a body; `scopes` turns the numbers in `Op.scope` into paths."""
    recording = _record(body, types)
    try:
        graph, found = read_outputs(recording)
    except Unsupported as error:
        raise TraceError(f"in {body.name}: {error}") from error
    given = len(body.inputs)
    tangents = sum(wanted for _, wanted in body.outputs)
    ops, renamed = simplify(graph.ops, graph.types)
    found = tuple(renamed.get(v, v) for v in found)
    results, gradients = found[: len(body.outputs)], found[len(body.outputs) :]
    ops = live_ops(ops, set(found))
    first = live_ops(ops, set(results))
    made = {r for op in first for r in op.results if r >= 0}
    later = [op for op in ops if made.isdisjoint(op.results)]
    ahead = [op for op in ops if not made.isdisjoint(op.results)]
    return _numbered(body, ahead, later, results, gradients, given, tangents, graph.types, scopes)


def _record(body: Body, types: Sequence[TensorType]) -> Recording:
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    wanting = [types[value] for value, wanted in body.outputs if wanted]
    with fake_mode:
        tensors = [_fake(types[i.value]).requires_grad_(i.wanted) for i in body.inputs]
        tangents = [_fake(t) for t in wanting]

    def joint(tensors: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
        outs, wanted = _forward(body, tensors)
        sources = [t for t, i in zip(tensors, body.inputs, strict=True) if i.wanted]
        if not tangents or not sources:
            return outs
        pairs = [(o, t) for o, t in zip(wanted, tangents, strict=True) if o.requires_grad]
        ends, seeds = [o for o, _ in pairs], [t for _, t in pairs]
        found = torch.autograd.grad(ends, sources, seeds, allow_unused=True)
        zero = (torch.zeros_like(s) for s in sources)
        return outs + [g if g is not None else z for g, z in zip(found, zero, strict=True)]

    with fake_mode, torch.enable_grad(), torch.fx.traceback.preserve_node_meta():
        try:
            graph = make_fx(joint)(tensors, tangents)
        except (RuntimeError, NotImplementedError) as error:
            text = str(error).split("\n")[0]
            raise TraceError(f"in {body.name}: no gradient can be derived: {text}") from error
    inputs = [types[i.value] for i in body.inputs] + wanting
    described = [ModelInput(f"x{n}", t, (n,), False) for n, t in enumerate(inputs)]
    return Recording(graph, [], described, [Invocation("", "", -1)])


def _forward(body: Body, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run the body; all outputs, and those that want a gradient."""
    values = {i.value: t for i, t in zip(body.inputs, tensors, strict=True)}
    seen: dict[int, Any] = {}
    for op in body.ops:
        mark = {"invocation": int(op.scope or 0)}
        with torch.fx.traceback.annotate(mark):
            made = run_op(op, values.__getitem__)
        values.update(zip(op.results, made, strict=True))
        for tensor in made:
            _mark_backward(tensor.grad_fn, mark, seen)
    wanted = [values[value] for value, wants in body.outputs if wants]
    return [values[value].detach() for value, _ in body.outputs], wanted


def _mark_backward(node: Any, mark: dict[str, int], seen: dict[int, Any]) -> None:
    """Have autograd's new nodes note, while they run, which module their forward belongs to."""
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
    """A context as two autograd hooks, which must return nothing."""

    def enter(*_: Any) -> None:
        mark.__enter__()

    def leave(*_: Any) -> None:
        mark.__exit__(None, None, None)

    return enter, leave


def _fake(type_: TensorType) -> Tensor:
    return torch.empty(type_.shape, dtype=DTYPES[type_.dtype], device="cpu")


def _numbered(
    body: Body,
    ahead: list[Op],
    later: list[Op],
    results: tuple[int, ...],
    gradients: tuple[int, ...],
    given: int,
    tangents: int,
    types: list[TensorType],
    scopes: dict[str, str],
) -> Function:
    """The function with values numbered inputs, tangents, results in order."""
    number = {value: value for value in range(given + tangents)}
    for op in (*ahead, *later):
        for result in op.results:
            if result >= 0:
                number[result] = len(number)
    names = [types[value] for value in number]
    ops = tuple(
        replace(
            substitute(op, number),
            results=tuple(-1 if r < 0 else number[r] for r in op.results),
            scope=scopes.get(op.scope, ""),
        )
        for op in (*ahead, *later)
    )
    queue = iter(gradients)
    inputs = tuple(
        Input(n, i.kind, i.name, number[next(queue)] if i.wanted and gradients else None)
        for n, i in enumerate(body.inputs)
    )
    tangent = iter(range(given, given + tangents))
    outputs = tuple(
        Output(number[r], next(tangent) if wanted else None)
        for r, (_, wanted) in zip(results, body.outputs, strict=True)
    )
    return Function(body.name, tuple(names), inputs, outputs, ops, len(ahead))
