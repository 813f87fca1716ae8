"""Weights that operators of experts alone read: those of which ranks may have replicas of experts."""

from __future__ import annotations

from collections import defaultdict

from ..model.layout import Layout
from ..model.loops import Loops, declaration, site_of
from ..model.mesh import Mesh
from ..model.model import Function, Op
from ..plan.strategy import ROLES


def expert_weights(function: Function) -> frozenset[int]:
    """Parameters of a function whose first dimension are experts, and which nothing but operators of
    experts reads, perhaps cast or with their other dimensions in another order."""
    readers: dict[int, list[Op]] = defaultdict(list)
    for op in function.ops:
        for value in dict.fromkeys(op.operands()):
            readers[value].append(op)
    outputs = {output.value for output in function.outputs}

    def by_experts(value: int) -> bool:
        """Whether operators of experts alone read a value, and some does."""
        if value in outputs or not readers[value]:
            return False
        return all(reads(op, value) for op in readers[value])

    def reads(op: Op, value: int) -> bool:
        declared = declaration(site_of(op, function.types))
        if declared is None:
            return False
        dims = [declared.inputs[i][0] for i, v in enumerate(op.operands()) if v == value]
        if declared.routing is not None:
            return all(dim == (_experts(declared),) for dim in dims)
        unary = op.operands() == (value,) and len(op.results) == 1
        same = unary and declared.outputs[0][:1] == tuple(dims)
        return same and by_experts(op.results[0])

    return frozenset(
        item.value
        for item in function.inputs
        if item.kind == "parameter"
        and len(function.types[item.value].shape) > 1
        and by_experts(item.value)
    )


def _experts(declared: Loops) -> str:
    """The loop over experts of an operator that rows choose experts of."""
    (pair,) = declared.pairs
    return pair[1]


def expert_axis(layout: Layout, mesh: Mesh) -> int | None:
    """The axis along which ranks have different experts of a weight of this layout; None where they have
    the same ones."""
    roles = {name for name, role in ROLES.items() if role.experts}
    for number, (axis, state) in enumerate(zip(mesh.axes, layout, strict=False)):
        if axis.size > 1 and axis.name in roles and isinstance(state, tuple):
            return number
    return None
