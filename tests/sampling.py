"""Parameters of which the default suite draws some, and `make test-all` all."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], share: int) -> list[Any]:
    """All values as parameters; only every `share`-th is not marked `long`."""
    return some_rows(((value,) for value in values), share)


def some_rows(rows: Iterable[tuple[Any, ...]], share: int) -> list[Any]:
    """As `some`, for several parameters at a time."""
    return [
        pytest.param(*row, marks=[pytest.mark.long] if number % share else [])
        for number, row in enumerate(rows)
    ]
