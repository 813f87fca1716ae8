"""What a flat graph computes of parameters, inputs and random numbers, with all else as numbers.

Two graphs that differ in where a constant is computed (in the step, or once before it) are equal here.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from ...model.model import Argument, Op, Ref
from ..decompositions.draws import DRAWS
from ..execute import constant, run_op
from ..graph import FlatGraph

MAXIMUM_ELEMENTS = 1 << 20
UNSTEADY = {"aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default"}


def folded(graph: FlatGraph) -> tuple[Hashable, ...]:
    """The operators that depend on more than constants, as a comparable value."""
    numbers: dict[int, Hashable] = {v: ("input", i.name) for v, i in graph.inputs.items()}
    known: dict[int, Tensor] = {}
    for value, parameter in graph.parameters.items():
        if parameter.kind == "constant":
            known[value] = constant(parameter.values or (), parameter.type)
        else:
            numbers[value] = "parameter", parameter.name

    def described(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            value = argument.value
            return _content(known[value]) if value in known else numbers[value]
        return tuple(map(described, argument)) if isinstance(argument, tuple) else argument

    lines: list[Hashable] = []
    for op in graph.ops:
        if _is_constant(op, graph, known):
            known.update(zip(op.results, run_op(op, known.__getitem__), strict=True))
            continue
        named = tuple((k, described(a)) for k, a in sorted(op.kwargs.items()))
        lines.append((op.target, tuple(map(described, op.args)), named))
        numbers.update({r: ("result", len(lines), n) for n, r in enumerate(op.results)})
    results = (graph.loss, *graph.returned, *graph.updates.values())
    return (*lines, *(described(Ref(v)) for v in results), *graph.updates)


def _is_constant(op: Op, graph: FlatGraph, known: dict[int, Tensor]) -> bool:
    """Whether an operator computes something small of constants alone."""
    if op.target in DRAWS or op.target in UNSTEADY or not op.target.startswith("aten."):
        return False
    small = all(r < 0 or graph.types[r].elements <= MAXIMUM_ELEMENTS for r in op.results)
    return small and all(v in known for v in op.operands())


def _content(tensor: Tensor) -> Hashable:
    return str(tensor.dtype), tuple(tensor.shape), tuple(tensor.reshape(-1).tolist())
