"""Passes: every step from the value of one stage to the next has a name and can be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

X = TypeVar("X")
Y = TypeVar("Y")


class Pass(msgspec.Struct, Generic[X, Y], frozen=True):
    """A named step of the compiler; its fields are its options, and equal passes do the same."""

    name: ClassVar[str]

    def apply(self, value: X) -> Y:
        """The value after the pass; `value` stays as it is unless the pass says otherwise."""
        raise NotImplementedError


Observer = Callable[[Pass[Any, Any], Any], None]


def run(step: Pass[X, Y], value: X, observer: Observer | None = None) -> Y:
    """Apply a pass, and show the observer what it gives."""
    result = step.apply(value)
    if observer is not None:
        observer(step, result)
    return result
