"""Gradients of tables as the rows that were read, where the model's embeddings ask for them.

`nn.Embedding(..., sparse=True)` has a gradient of as many rows as it looked up, and optimizers such as
SparseAdam move those rows alone. Autograd cannot record such a gradient on fake tensors: the dense one
is recorded, and its operator replaced by the one that gives rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...analysis.row_gradients import look_ups
from ...model.model import Op
from ...ops.embedding import SPARSE_GRADIENT, reads_rows
from ..graph import replace

ASKS = 4  # position of `sparse` among the arguments of an embedding


def recorded_dense(op: Op) -> Op:
    """The operator as it is recorded: an embedding without its wish for rows."""
    if not _asks_for_rows(op):
        return op
    return replace(op, args=(*op.args[:ASKS], False, *op.args[ASKS + 1 :]))


def tables_of_rows(ops: Sequence[Op]) -> frozenset[int]:
    """Values that only embeddings read which ask for gradients of rows."""
    asked = {op.operands()[0] for op in ops if _asks_for_rows(op)}
    others = {value for op in ops if not _asks_for_rows(op) for value in op.operands()}
    return frozenset(asked - others)


def with_row_gradients(ops: Sequence[Op], gradients: Sequence[int]) -> list[Op]:
    """The operators, of which those that give `gradients` of whole tables give rows instead."""
    made_by = {result: op for op in ops for result in op.results}
    rows = {id(op) for value in gradients for op in look_ups(value, made_by)}
    return [replace(op, target=SPARSE_GRADIENT) if id(op) in rows else op for op in ops]


def _asks_for_rows(op: Op) -> bool:
    return reads_rows(op) and len(op.args) > ASKS and op.args[ASKS] is True
