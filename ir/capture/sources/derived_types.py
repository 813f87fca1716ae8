"""Types of a model that came from a file, derived again by torch from its operators.

Declarations say which loops operands and results share; torch's own rules for fake tensors also know
element types, and operators that nobody declared. Nothing is computed and nothing allocated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import FileError
from ...model.model import Function, Model, Op, Ref, map_refs
from ...model.tensor import TensorType
from ..execute import run_op
from ..literals import DTYPES
from ..torch_private import DATA_DEPENDENT_ERRORS, FakeTensorMode

# What fake tensors do not know: results whose shapes are those of values, operators without a rule.
UNKNOWN = (*DATA_DEPENDENT_ERRORS, NotImplementedError)


def verify_types(model: Model) -> None:
    """Raises FileError with the JSON path of the first operator that torch does not let give the types
    that the file says, from those of its operands."""
    with _quiet(), FakeTensorMode(), torch.no_grad():
        for i, function in enumerate(model.functions):
            for j, op in enumerate(function.ops):
                _verify(op, function, f"$.functions[{i}].ops[{j}]")


@dataclass(frozen=True)
class _Use:
    """An operator on operands of these types, numbered as they appear: equal uses in any function are
    one. They are equal in their text, in which 1, 1.0 and True differ."""

    text: str
    types: tuple[TensorType, ...]
    op: Op = field(compare=False)


def _use(op: Op, function: Function) -> _Use:
    numbers: dict[int, int] = {}

    def number(value: int) -> Ref:
        return Ref(numbers.setdefault(value, len(numbers)))

    args = tuple(map_refs(argument, number) for argument in op.args)
    kwargs = {name: map_refs(argument, number) for name, argument in op.kwargs.items()}
    numbered = Op(op.target, args, kwargs, ())
    return _Use(repr(numbered), tuple(function.types[value] for value in numbers), numbered)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of an operator that it refuses."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _verify(op: Op, function: Function, where: str) -> None:
    types = _derived(_use(op, function))
    if isinstance(types, str):
        raise FileError(f"{where}: torch refuses {op.target:.80}: {types:.300}")
    for result, gives in zip(op.results, types, strict=False):
        if result >= 0 and gives != (want := function.types[result]):
            raise FileError(f"{where}: {op.target:.80} gives {gives}, not {want}")


@lru_cache(1 << 12)
def _derived(use: _Use) -> tuple[TensorType | None, ...] | str:
    """Types of results by torch, nothing where it does not know them, or why it refuses; None for what
    is no tensor."""

    def operand(value: int) -> Tensor:
        type_ = use.types[value]
        return torch.empty(type_.shape, dtype=DTYPES[type_.dtype])

    try:
        return tuple(_type(tensor) for tensor in run_op(use.op, operand))
    except UNKNOWN:
        return ()
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _type(tensor: object) -> TensorType | None:
    if not isinstance(tensor, Tensor):
        return None
    return TensorType(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
