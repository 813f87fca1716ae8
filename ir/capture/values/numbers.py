"""A tensor's value as a number of Python, while a model is recorded and nobody knows it.

Arithmetic goes on in tensors of no dimension, and comparisons are branches on values. What needs the
number itself (a size, an index, a function of `math`) is refused.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..operators.checked import OPS
from ..torch_private import outside_modes, tree_leaves, tree_map
from .known import KnownValues

INSIDE = (__name__.partition(".values")[0], "torch.")  # modules that are no model's
UNKNOWN = (
    "{line}: the computation depends on values of tensors which a compiled program cannot know in "
    "advance: what .item() gives may be computed with and compared, and is no size, index or argument "
    "of a function of Python. Keep it a tensor, or pass it in the batch as a number"
)
OUTSIDE = "{line}: the span of {length} from that number on is not within the {size} there"


class UnknownNumber(TraceError):
    """Code asks for a number of Python that a compiled program cannot know, where the step changes
    buffers that are `changed`."""

    def __init__(self, text: str, changed: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.changed = frozenset(changed)


class Answers(Protocol):
    """Values that are known, and whether a boolean tensor is true."""

    known: KnownValues

    def decide(self, tensor: Tensor) -> bool: ...


class Number:
    """What `tensor.item()` gives; the answers are those of the recording.

    It is the number `root` and an `offset` that is known.
    """

    def __init__(self, tensor: Tensor, answers: Answers) -> None:
        self.tensor, self.answers = tensor.detach().clone().reshape(()), answers
        self.root, self.offset = self, 0
        answers.known.same(self.tensor, tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*as_tensors(args), **as_tensors(kwargs or {}))

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What code of the model takes it for when it asks for its type."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(INSIDE):
            return Number
        return self.kind

    @property
    def kind(self) -> type:
        return float if self.tensor.is_floating_point() else int

    def _computed(self, operation: Callable[..., Any], *others: Any) -> Any:
        """A number, in float64 as Python has it; with a tensor, a tensor that keeps its gradient."""
        if any(isinstance(other, Tensor) for other in others):
            return operation(*as_tensors((self, *others)))
        numbers = [o.tensor if isinstance(o, Number) else o for o in (self, *others)]
        if any(isinstance(n, float) or _is_fraction(n) for n in numbers):
            numbers = [n.double() if isinstance(n, Tensor) else n for n in numbers]
        return Number(operation(*numbers), self.answers)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Number:
        """A function of `math`."""
        return Number(function(self.tensor.double()), self.answers)

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
        raise UnknownNumber(UNKNOWN.format(line=line), self.answers.known.changed)

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

    def truncated(self) -> Number:
        """`int(number)`."""
        if not self.tensor.is_floating_point():
            return self
        return Number(self.tensor.trunc().to(torch.int64), self.answers)

    def _moved(self, result: Number, by: Any) -> Number:
        """`result`, which is this number and `by`."""
        if type(by) is int:
            result.root, result.offset = self.root, self.offset + by
        return result


def _quotient(x: Any, y: Any) -> Any:
    """`x / y`, which of whole numbers is in float64."""
    whole = isinstance(x, Tensor) and not x.is_floating_point()
    return (x.double() if whole else x) / (y.double() if whole and isinstance(y, Tensor) else y)


def _operation(name: str) -> Callable[..., Any]:
    return _quotient if name == "truediv" else getattr(operator, name)


def _forwards(name: str) -> Callable[..., Any]:
    operation = _operation(name)
    return lambda self, *others: self._computed(operation, *others)


def _backwards(name: str) -> Callable[..., Any]:
    operation = _operation(name)
    return lambda self, other: self._computed(lambda x, y: operation(y, x), other)


def _add(number: Number, other: Any) -> Any:
    return number._moved(number._computed(operator.add, other), other)


def _sub(number: Number, other: Any) -> Any:
    by = -other if type(other) is int else None
    return number._moved(number._computed(operator.sub, other), by)


def _comparison(name: str) -> Callable[..., bool]:
    operation = getattr(operator, name)
    return lambda self, other: self._compared(operation, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _forwards(_name))
    setattr(Number, f"__r{_name}__", _backwards(_name))
for _name, _rule in (("__add__", _add), ("__radd__", _add), ("__sub__", _sub)):
    setattr(Number, _name, _rule)
for _name in ("neg", "abs"):
    setattr(Number, f"__{_name}__", _forwards(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _comparison(_name))


def _is_fraction(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def as_tensors(values: Any) -> Any:
    """Arguments with numbers as tensors of no dimension; fractions take the type of tensors beside them,
    as those of Python do."""
    leaves = tree_leaves(values)
    if not any(isinstance(leaf, Number) for leaf in leaves):
        return values
    dtype = next((leaf.dtype for leaf in leaves if _is_fraction(leaf)), None)

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, Number):
            return leaf
        return leaf.tensor.to(dtype) if dtype and _is_fraction(leaf.tensor) else leaf.tensor

    return tree_map(tensor, values)


def spans(x: Tensor, index: Any) -> Any:
    """An index with the places of its slices `n : n + length`, where n is a number that nobody knows.

    Python ends a slice at the tensor's end; a program refuses the step in which that happens.
    """
    parts = index if isinstance(index, tuple) else (index,)
    spanned = [n for n, part in enumerate(parts) if isinstance(part, slice) and _length(part)]
    if len(spanned) != 1 or any(not isinstance(p, slice) for p in parts):
        return index
    axis = spanned[0]
    start, length, size = parts[axis].start, _length(parts[axis]), x.shape[axis]
    places = start.tensor + torch.arange(length, device=x.device)
    text = OUTSIDE.format(line=current_user_line(), length=length, size=size)
    places = OPS.checked(places, (places >= 0) & (places < size), text)
    return (*parts[:axis], places, *parts[axis + 1 :])


def _length(part: slice) -> int:
    """The length of a slice between two numbers that lie so far apart; 0 where nobody knows."""
    first, last = part.start, part.stop
    if not isinstance(first, Number) or not isinstance(last, Number) or part.step is not None:
        return 0
    return max(last.offset - first.offset, 0) if last.root is first.root else 0


# questions that a rule answers: numbers of the training are taken to be finite
FINITE = {"isfinite": True, "isnan": False, "isinf": False}
# of `math`, which torch has under the same names
FUNCTIONS = ("exp", "log", "sqrt", "sin", "cos", "tanh")


def _asked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def answer(x: Any, *rest: Any, **more: Any) -> Any:
        if not isinstance(x, Number):
            return function(x, *rest, **more)
        return FINITE[name] if name in FINITE else x.mapped(getattr(torch, name))

    return answer


@contextlib.contextmanager
def numbers_of_math() -> Iterator[None]:
    """Answer `math.isfinite(loss.item())`, `math.exp(-step.item())` and the like, which take numbers of
    Python alone."""
    places: list[tuple[Any, str]] = [(module, name) for module in (math, numpy) for name in FINITE]
    places += [(math, name) for name in FUNCTIONS]
    before = [getattr(module, name) for module, name in places]
    for (module, name), function in zip(places, before, strict=True):
        setattr(module, name, _asked(function, name))
    try:
        yield
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)
