"""Weights that matrix products alone read, perhaps transposed or cast: those a product can gather in
slices, and the dimension along which they are."""

from __future__ import annotations

from collections import defaultdict

from ..model.layout import Shard
from ..model.loops import Loops, declaration, site_of
from ..model.model import Function, Op
from .axes import Axes
from .dataflow import Dataflow

Dims = dict[int, int]  # by value of a function


def sliced_weights(flow: Dataflow) -> dict[str, Dims]:
    """By function, its weights that can be in shards, along a dimension which is one of a product's
    results. Functions that share a tensor agree on it."""
    sliced = {name: _of_products(f) for name, f in flow.graph.functions.items()}
    readers: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for number, call in enumerate(flow.graph.model.calls):
        for name, item in flow.graph.parameters(number):
            readers[name].add((call.function, item.value))
    groups = {frozenset(group) for group in readers.values()}
    changed = True
    while changed:
        changed = False
        for group in groups:
            dims = {sliced[function].get(value) for function, value in group}
            if len(dims) > 1:
                changed = True
                for function, value in group:
                    sliced[function].pop(value, None)
    return sliced


def shards_of(axes: Axes, dims: Dims, degree: int) -> dict[int, Shard]:
    """The shards of weights along these dimensions: of the outermost factor that so many ranks divide.
    Weights without one are not sharded."""
    shards: dict[int, Shard] = {}
    for value, dim in dims.items():
        even = (i for i, size in enumerate(axes.factors[value][dim]) if size % degree == 0)
        factor = next(even, None)
        if factor is not None:
            shards[value] = dim, factor
    return shards


def _of_products(function: Function) -> Dims:
    readers: dict[int, list[Op]] = defaultdict(list)
    for op in function.forward_ops:
        for value in dict.fromkeys(op.operands()):
            readers[value].append(op)
    outputs = {output.value for output in function.outputs}

    def dimension(value: int) -> int | None:
        """The dimension of a value that is one of the results of all products, which alone read it."""
        if value in outputs or not readers[value]:
            return None
        dims = {read(op, value) for op in readers[value]}
        return dims.pop() if len(dims) == 1 else None

    def read(op: Op, value: int) -> int | None:
        declared = declaration(site_of(op, function.types))
        if declared is None or op.operands().count(value) != 1 or len(op.results) != 1:
            return None
        if len(op.operands()) == 1:
            below = dimension(op.results[0])
            return None if below is None else same_dimension(declared, below)
        return free_dimension(declared, op.operands().index(value))

    return {
        item.value: dim
        for item in function.inputs
        if item.kind == "parameter"
        and len(function.types[item.value].shape) > 1
        and (dim := dimension(item.value)) is not None
    }


def same_dimension(declared: Loops, dim: int) -> int | None:
    """The operand's dimension over the loop of a dimension of the result; None where it is not one."""
    loops = declared.outputs[0][dim]
    return (
        declared.inputs[0].index(loops) if len(loops) == 1 and loops in declared.inputs[0] else None
    )


def free_dimension(declared: Loops, operand: int) -> int | None:
    """The dimension of a product's operand that its result has, and no other operand."""
    if declared.work != "gemm":
        return None
    others = {n for i, dims in enumerate(declared.inputs) if i != operand for d in dims for n in d}
    free = (
        dim
        for dim, loops in enumerate(declared.inputs[operand])
        if len(loops) == 1 and loops in declared.outputs[0] and loops[0] not in others
    )
    return next(free, None)
