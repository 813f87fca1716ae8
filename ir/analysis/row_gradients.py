"""Tables whose gradients are of the rows that a step read, not of all rows."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from msgspec.structs import replace

from ..model.loops import shard_aware_name
from ..model.model import Function, Input, Model, Op, Ref
from ..model.tensor import TensorType
from ..ops.embedding import DENSE_GRADIENT, SPARSE_GRADIENT

ADD = "aten.add.Tensor"  # of the gradients of two look-ups
JOIN = "aten.cat.default"  # what that is where both are of rows
OF_ROWS = frozenset({SPARSE_GRADIENT, shard_aware_name(SPARSE_GRADIENT)})


def sparse_gradients(model: Model) -> frozenset[str]:
    """Names of the parameters of which every call has a sparse gradient or none."""
    sparse, dense = set[str](), set[str]()
    functions = {function.name: function for function in model.functions}
    for call in model.calls:
        function = functions[call.function]
        for name, item in zip(call.parameters, function.state_inputs(), strict=True):
            if item.gradient is not None:
                (sparse if has_row_gradient(function, item) else dense).add(name)
    return frozenset(sparse - dense)


def has_row_gradient(function: Function, item: Input) -> bool:
    """Whether the gradient of an input is of the rows that were read."""
    made_by = {result: op for op in function.ops for result in op.results}
    return item.gradient is not None and bool(look_ups(item.gradient, made_by, OF_ROWS))


def with_row_types(local: Function, whole: Function) -> Function:
    """The per-device function of `whole`, in which sparse gradients have the size of their rows: what
    they take in memory and on the way; sums of them have the rows of both. A shard of a table gets its
    share of the rows that are read."""
    types, ops, rows = list(local.types), list(local.ops), dict[int, int]()
    table_rows = _table_rows(local, whole)
    for number, op in enumerate(local.ops):
        operands, (*_, result) = op.operands(), op.results
        if op.target in OF_ROWS:
            here = local.types[result].shape[0]
            everywhere = table_rows.get(result, here)
            # as many look-ups come from other ranks as go to them
            part = 1 if "over" in op.kwargs else here / everywhere
            rows[result] = ceil(types[operands[1]].elements * part)
        elif op.target == ADD and all(value in rows for value in operands):
            rows[result] = sum(rows[value] for value in operands)
            both = tuple(map(Ref, operands))
            ops[number] = Op(JOIN, (both, 0), {}, op.results, op.scope)
    for value, count in rows.items():
        width = local.types[value].shape[1]
        types[value] = TensorType((count, width), types[value].dtype)
    return replace(local, types=tuple(types), ops=tuple(ops)) if rows else local


def _table_rows(local: Function, whole: Function) -> dict[int, int]:
    """Rows of the whole table by the value of each look-up's gradient."""
    made_by = {result: op for op in local.ops for result in op.results}
    return {
        op.results[0]: whole.types[item.value].shape[0]
        for mine, item in zip(local.inputs, whole.inputs, strict=True)
        if mine.gradient is not None
        for op in look_ups(mine.gradient, made_by, OF_ROWS)
    }


def look_ups(
    value: int, made_by: Mapping[int, Op], targets: frozenset[str] = frozenset({DENSE_GRADIENT})
) -> list[Op]:
    """The gradients of look-ups that a gradient is the sum of; none where it is more than that."""
    op = made_by.get(value)
    if op is None or (op.target != ADD and op.target not in targets):
        return []
    if op.target in targets:
        return [op]
    terms = [look_ups(a.value, made_by, targets) if isinstance(a, Ref) else [] for a in op.args[:2]]
    return [look_up for term in terms for look_up in term] if all(terms) else []
