"""Parameters of which the default suite draws some, and `make test-all` all."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], share: int) -> list[Any]:
    """All values as parameters; only every `share`-th is not marked `long`."""
    return [
        value if number % share == 0 else pytest.param(value, marks=pytest.mark.long)
        for number, value in enumerate(values)
    ]
