"""Types of a model that came from a file, derived again by torch from its operators.

Declarations say which loops operands and results share; torch's own rules for fake tensors also know
element types, and operators that nobody declared. Nothing is computed and nothing allocated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import FileError
from ...model.model import Function, Model, Op
from ...model.tensor import TensorType
from ..execute import run_op
from ..literals import DTYPES, dtype_name
from ..torch_private import DATA_DEPENDENT_ERRORS, FakeTensorMode

# What fake tensors do not know: results whose shapes are those of values, operators without a rule.
UNKNOWN = (*DATA_DEPENDENT_ERRORS, NotImplementedError)


def verify_types(model: Model) -> None:
    """Raises FileError with the JSON path of the first operator that torch does not let give the types
    that the file says, from those of its operands."""
    known: set[tuple[object, ...]] = set()
    with _quiet(), FakeTensorMode(), torch.no_grad():
        for i, function in enumerate(model.functions):
            for j, op in enumerate(function.ops):
                signature = (op.target, repr((op.args, op.kwargs)), *_types(function, op))
                if signature not in known:
                    known.add(signature)
                    _verify(op, function, f"$.functions[{i}].ops[{j}]")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of an operator that it refuses."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _types(function: Function, op: Op) -> list[TensorType]:
    values = (*op.operands(), *(result for result in op.results if result >= 0))
    return [function.types[value] for value in values]


def _verify(op: Op, function: Function, where: str) -> None:
    def operand(value: int) -> Tensor:
        type_ = function.types[value]
        return torch.empty(type_.shape, dtype=DTYPES[type_.dtype])

    try:
        tensors = run_op(op, operand)
    except UNKNOWN:
        return
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(f"{where}: torch refuses {op.target:.80}: {said:.300}") from None
    for result, tensor in zip(op.results, tensors, strict=False):
        if result >= 0:
            gives = TensorType(tuple(tensor.shape), dtype_name(tensor.dtype))
            want = function.types[result]
            if gives != want:
                raise FileError(f"{where}: {op.target:.80} gives {gives}, not {want}")
