"""Simplify a joint graph: explicit sizes, common subexpressions, identities."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from ...analysis.liveness import needed_ops
from ...model.model import Argument, Op, Ref, complex_number
from ...model.tensor import TensorType
from ...passes import Pass
from ..graph import arguments, replace, substitute

CAT, CONJUGATE = "aten.cat.default", "aten._conj.default"
IDENTITIES = frozenset(
    {"aten.detach.default", "aten.alias.default", "aten.lift_fresh_copy.default"}
)
VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"})
SAME_TYPE = frozenset({"aten.view.default", "aten.expand.default", "aten._to_copy.default"})
# fmt: off
NEUTRAL = {
    "aten.mul.Tensor": 1.0, "aten.mul.Scalar": 1.0, "aten.div.Tensor": 1.0, "aten.div.Scalar": 1.0,
    "aten.pow.Tensor_Scalar": 1.0, "aten.add.Tensor": 0.0, "aten.add.Scalar": 0.0,
    "aten.sub.Tensor": 0.0, "aten.sub.Scalar": 0.0,
}
# fmt: on
# constant tensors that only take their element type from an operand
NEW = {"aten.new_zeros.default": 0.0, "aten.new_ones.default": 1.0, "aten.new_full.default": None}
# the same, where they are single numbers: a partial sum is as good an operand as the whole one
LIKE = {"aten.zeros_like.default": 0.0, "aten.ones_like.default": 1.0}
# slices: operator -> position of its dim argument
SLICES = {"aten.slice.Tensor": 1, "aten.slice_scatter.default": 2, "aten.slice_backward.default": 2}


class JointGraph(NamedTuple):
    """Operators of a forward and its gradients, the types of all values, and the outputs of both."""

    ops: list[Op]
    types: list[TensorType]
    outputs: tuple[int, ...]


class Simplify(Pass[JointGraph, JointGraph], frozen=True):
    """Remove operators that compute what others compute, or what nothing reads."""

    name = "simplify"

    def apply(self, value: JointGraph) -> JointGraph:
        ops, renamed = _simplified(value.ops, value.types)
        outputs = tuple(renamed.get(v, v) for v in value.outputs)
        return JointGraph(list(needed_ops(ops, set(outputs))), value.types, outputs)


def _simplified(ops: list[Op], types: list[TensorType]) -> tuple[list[Op], dict[int, int]]:
    """Return the remaining operators, and which value replaces each removed one."""
    renamed: dict[int, int] = {}
    seen: dict[Hashable, tuple[int, ...]] = {}
    made_by: dict[int, Op] = {}
    remaining = []
    for old in ops:
        op = _merged(normalise(substitute(old, renamed), types), made_by)
        same = _equal_value(op, types, made_by)
        if same is not None:
            renamed[op.results[0]] = same
            continue
        key = (op.target, _hashable(op.args), _hashable(tuple(sorted(op.kwargs.items()))))
        if key in seen:
            renamed.update(zip(op.results, seen[key], strict=True))
            continue
        seen[key] = op.results
        made_by.update(dict.fromkeys(op.results, op))
        remaining.append(op)
    return remaining, renamed


def _merged(op: Op, made_by: dict[int, Op]) -> Op:
    """Make a view of a view a view of the first tensor."""
    if op.target != "aten.view.default":
        return op
    before = made_by.get(op.operands()[0])
    if before is None or before.target != "aten.view.default":
        return op
    return replace(op, args=(before.args[0], op.args[1]))


def _equal_value(op: Op, types: list[TensorType], made_by: dict[int, Op]) -> int | None:
    """An existing value that equals the operator's only result, or None."""
    operands = op.operands()
    if not operands or len(op.results) != 1:
        return None
    source = operands[0]
    if op.target in IDENTITIES:
        return source
    unchanged = types[source] == types[op.results[0]]
    if op.target in SAME_TYPE and unchanged:
        return source
    if op.target == CAT and unchanged and len(operands) == 1:
        return source
    if op.target in NEUTRAL and unchanged and isinstance(op.args[1], int | float):
        return source if op.args[1] == NEUTRAL[op.target] else None
    if op.target in ("aten.t.default", "aten.transpose.int"):
        before = made_by.get(source)
        undone = (
            before is not None and before.target == op.target and before.args[1:] == op.args[1:]
        )
        return before.operands()[0] if before is not None and undone else None
    return None


def _hashable(argument: Argument) -> Hashable:
    """An argument as a hashable value in which 1, 1.0 and True differ."""
    if isinstance(argument, Ref):
        return ("%", argument.value)
    if isinstance(argument, tuple):
        return tuple(_hashable(part) for part in argument)
    return type(argument).__name__, argument


def normalise(op: Op, types: list[TensorType]) -> Op:
    """Make sizes in literals explicit: no -1 in shapes, no open ends in slices."""
    shape = types[op.results[0]].shape if op.results and op.results[0] >= 0 else ()
    if op.target in VIEWS:
        return replace(op, target="aten.view.default", args=(op.args[0], shape))
    if op.target == "aten.expand.default":
        return replace(op, args=(op.args[0], shape), kwargs={})
    if op.target == CAT:
        return _without_empty(op, types)
    if op.target in NEW or (op.target in LIKE and not shape):
        return _full(op, types)
    if op.target == CONJUGATE and isinstance(op.args[0], str):
        return _conjugate(op, types)
    if op.target in SLICES:
        sliced = shape if op.target != "aten.slice.Tensor" else types[op.operands()[0]].shape
        return _closed_slice(op, SLICES[op.target], sliced)
    return op


def _without_empty(op: Op, types: list[TensorType]) -> Op:
    """A concatenation of the tensors that have elements."""
    parts = op.args[0]
    assert isinstance(parts, tuple)
    filled = tuple(p for p in parts if isinstance(p, Ref) and types[p.value].elements)
    return replace(op, args=(filled or parts[:1], *op.args[1:]))


def _full(op: Op, types: list[TensorType]) -> Op:
    """A constant tensor as `full`, without operand."""
    type_, constant = types[op.results[0]], (NEW | LIKE)[op.target]
    args = (type_.shape, op.args[2] if constant is None else constant)
    return replace(
        op, target="aten.full.default", args=args, kwargs={"dtype": f"dtype:{type_.dtype}"}
    )


def _conjugate(op: Op, types: list[TensorType]) -> Op:
    """The conjugate of a literal, which a product's gradient has, as `full`."""
    literal, type_ = str(op.args[0]), types[op.results[0]]
    number = complex_number(literal.removeprefix("complex:"))
    assert number is not None, literal
    args = (type_.shape, f"complex:{number.conjugate()}")
    return replace(
        op, target="aten.full.default", args=args, kwargs={"dtype": f"dtype:{type_.dtype}"}
    )


def _closed_slice(op: Op, place: int, shape: tuple[int, ...]) -> Op:
    dim, start, end, step = arguments(op, *(None,) * place, 0, None, None, 1)[place:]
    assert isinstance(dim, int)
    size = shape[dim]
    first, last = (_clamped(p, size, absent) for p, absent in ((start, 0), (end, size)))
    return replace(op, args=(*op.args[:place], dim, first, max(first, last), step))


def _clamped(position: Argument, size: int, absent: int) -> int:
    if position is None:
        return absent
    assert isinstance(position, int)
    return min(max(position + size if position < 0 else position, 0), size)
