"""Tables whose gradients are of the rows that a step read, not of all rows."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from ..model.loops import shard_aware_name
from ..model.model import Function, Input, Model, Op, Ref
from ..model.tensor import TensorType
from ..ops.embedding import DENSE_GRADIENT, SPARSE_GRADIENT

ADD = "aten.add.Tensor"  # of the gradients of two look-ups
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
    they take in memory and on the way. A shard of a table gets its share of the rows that are read."""
    types, rows = list(local.types), dict[int, int]()
    tables = {local_input.gradient: item for local_input, item in _tables(local, whole)}
    for op in local.ops:
        operands, (*_, result) = op.operands(), op.results
        if op.target in OF_ROWS:
            rows[result] = types[operands[1]].elements
        elif op.target == ADD and all(value in rows for value in operands):
            rows[result] = sum(rows[value] for value in operands)
    for value, count in rows.items():
        height, width = local.types[value].shape
        item = tables.get(value)
        all_rows = height if item is None else whole.types[item.value].shape[0]
        types[value] = TensorType((-(-count * height // all_rows), width), types[value].dtype)
    return replace(local, types=tuple(types)) if rows else local


def _tables(local: Function, whole: Function) -> list[tuple[Input, Input]]:
    """The inputs of both that have gradients of rows."""
    pairs = zip(local.inputs, whole.inputs, strict=True)
    return [(mine, item) for mine, item in pairs if has_row_gradient(whole, item)]


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
