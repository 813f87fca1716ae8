"""A tensor's value as a number of Python, while a model is recorded and nobody knows it.

Arithmetic goes on in tensors of no dimension, and comparisons are branches on values. What needs the
number itself (a size, an index, a function of `math`) is refused.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import outside_modes, tree_map
from .known import KnownValues


class Answers(Protocol):
    """Values that are known, and whether a boolean tensor is true."""

    known: KnownValues

    def decide(self, tensor: Tensor) -> bool: ...


class Number:
    """What `tensor.item()` gives; the answers are those of the recording."""

    def __init__(self, tensor: Tensor, answers: Answers) -> None:
        self.tensor, self.answers = tensor.detach().reshape(()), answers
        answers.known.same(self.tensor, tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*as_tensors(args), **as_tensors(kwargs or {}))

    def _computed(self, operation: Callable[..., Any], *others: Any) -> Any:
        return Number(operation(self.tensor, *as_tensors(others)), self.answers)

    def _compared(self, operation: Callable[..., Any], other: Any) -> bool:
        return self.answers.decide(operation(self.tensor, as_tensors(other)))

    def __bool__(self) -> bool:
        return self.answers.decide(self.tensor != 0)

    def __format__(self, format_spec: str) -> str:
        return "a number"

    def _value(self) -> Any:
        """The number of a batch or of a buffer as it is now, which every step checks."""
        line = current_user_line()
        value = self.answers.known.given(self.tensor, line)
        if value is not None:
            with outside_modes():
                return value.item()
        raise TraceError(
            f"{line}: the computation depends on values of tensors which a compiled "
            "program cannot know in advance: what .item() gives may be computed with and compared, and "
            "is no size, index or argument of a function of Python. Keep it a tensor, or pass it in "
            "the batch as a number"
        )

    def __float__(self) -> float:
        return float(self._value())

    def __int__(self) -> int:
        return int(self._value())

    def __index__(self) -> int:
        return operator.index(self._value())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._value(), digits)

    def __hash__(self) -> int:
        return hash(self._value())


def _forwards(name: str) -> Callable[..., Any]:
    operation = getattr(operator, name)
    return lambda self, *others: self._computed(operation, *others)


def _backwards(name: str) -> Callable[..., Any]:
    operation = getattr(operator, name)
    return lambda self, other: self._computed(lambda x, y: operation(y, x), other)


def _comparison(name: str) -> Callable[..., bool]:
    operation = getattr(operator, name)
    return lambda self, other: self._compared(operation, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _forwards(_name))
    setattr(Number, f"__r{_name}__", _backwards(_name))
for _name in ("neg", "abs"):
    setattr(Number, f"__{_name}__", _forwards(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _comparison(_name))


def as_tensors(values: Any) -> Any:
    """Arguments with numbers as tensors of no dimension."""
    return tree_map(lambda v: v.tensor if isinstance(v, Number) else v, values)


# questions that a rule answers: numbers of the training are taken to be finite
FINITE = {"isfinite": True, "isnan": False, "isinf": False}


def _asked(function: Callable[..., Any], answer: bool) -> Callable[..., Any]:
    return lambda x, *rest, **more: answer if isinstance(x, Number) else function(x, *rest, **more)


@contextlib.contextmanager
def finite_numbers() -> Iterator[None]:
    """Answer `math.isfinite(loss.item())`, and the like, which take numbers of Python alone."""
    places: list[tuple[Any, str]] = [(module, name) for module in (math, numpy) for name in FINITE]
    before = [getattr(module, name) for module, name in places]
    for (module, name), function in zip(places, before, strict=True):
        setattr(module, name, _asked(function, FINITE[name]))
    try:
        yield
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)
