"""A tensor's value as a number of Python, while a model is recorded and nobody knows it.

Arithmetic goes on in tensors of no dimension, and comparisons are branches on values. What needs the
number itself (a size, an index, a function of `math`) is refused.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import tree_map


class Number:
    """What `tensor.item()` gives; `decide` says whether a boolean tensor is true."""

    def __init__(self, tensor: Tensor, decide: Callable[[Tensor], bool]) -> None:
        self.tensor, self.decide = tensor.detach().reshape(()), decide

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*as_tensors(args), **as_tensors(kwargs or {}))

    def _computed(self, operation: Callable[..., Any], *others: Any) -> Any:
        return Number(operation(self.tensor, *as_tensors(others)), self.decide)

    def _compared(self, operation: Callable[..., Any], other: Any) -> bool:
        return self.decide(operation(self.tensor, as_tensors(other)))

    def __bool__(self) -> bool:
        return self.decide(self.tensor != 0)

    def __format__(self, format_spec: str) -> str:
        return "a number"

    def _refuse(self) -> Any:
        raise TraceError(
            f"{current_user_line()}: the computation depends on values of tensors which a compiled "
            "program cannot know in advance: what .item() gives may be computed with and compared, and "
            "is no size, index or argument of a function of Python. Keep it a tensor, or pass it in "
            "the batch as a number"
        )

    __float__ = __int__ = __index__ = __round__ = __hash__ = _refuse  # type: ignore[assignment]


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
