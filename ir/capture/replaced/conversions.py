"""`int(x)` and `float(x)` of tensors whose values nobody knows, in the code of a model.

Python takes nothing but a number of its own from them. While a step is recorded again for their sake,
both names are, in the modules of the model's classes, types that are Python's but for such tensors.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..values.branches import Branches
from ..values.numbers import Number

TORCH = "torch.nn."  # whose modules convert no values


@contextlib.contextmanager
def conversions(model: nn.Module, branches: Branches) -> Iterator[None]:
    """Both names in the modules of the model's classes, where the recording converts."""
    if not branches.converting:
        yield
        return
    names = {kind.__module__ for part in model.modules() for kind in type(part).__mro__}
    tables = [vars(sys.modules[n]) for n in names if n in sys.modules and not n.startswith(TORCH)]
    types = {kind.__name__: _converting(kind, branches) for kind in (int, float)}
    hidden = [
        (table, name)
        for table in tables
        for name in types
        if name not in table and table["__name__"] != "builtins"
    ]
    for table, name in hidden:
        table[name] = types[name]
    try:
        yield
    finally:
        for table, name in hidden:
            del table[name]


def _converting(kind: type, branches: Branches) -> type:
    """A type that is `kind` in all tests of types, and gives numbers of the recording for tensors."""

    class Converting(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, kind) or (isinstance(value, Number) and value.kind is kind)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, kind)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is kind

        def __hash__(cls) -> int:
            return hash(kind)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            number = args[0] if len(args) == 1 else None
            if isinstance(number, Tensor) and number.numel() == 1:
                number = number.item()
            if isinstance(number, Number) and number.answers is branches:
                return number.truncated() if kind is int else number
            return kind(*args, **kwargs)

    return Converting(kind.__name__, (kind,), {})
