"""Random generators of torch, Python and numpy: their states are kept and put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

from ..locate import current_user_line

GENERATORS: tuple[type, ...] = (torch.Generator, random.Random, numpy.random.Generator)


def generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.tensor(state, dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


class GlobalRandom:
    """The states of the generators that everybody shares."""

    def __init__(self) -> None:
        self.torch_state = torch.get_rng_state()
        self.python_state = random.getstate()
        self.numpy_state: Any = numpy.random.get_state()

    def drawn(self) -> str | None:
        """Which one was drawn from, but torch's own (whose operators are refused by name)."""
        if random.getstate() != self.python_state:
            return "Python's random"
        if repr(numpy.random.get_state()) != repr(self.numpy_state):
            return "numpy.random"
        return None

    def restore(self) -> None:
        torch.set_rng_state(self.torch_state)
        random.setstate(self.python_state)
        numpy.random.set_state(self.numpy_state)


@contextlib.contextmanager
def lines_that_draw() -> Iterator[list[str]]:
    """Note the lines that draw by functions of Python's and numpy's shared generators, in order."""
    lines: list[str] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            lines.append(current_user_line())
            return function(*args, **kwargs)

        return draw

    shared: Any = (random.random.__self__, numpy.random.rand.__self__)  # type: ignore[attr-defined]
    functions = [
        (module, name, function)
        for module in (random, numpy.random)
        for name, function in vars(module).items()
        if any(getattr(function, "__self__", None) is one for one in shared)
    ]
    for module, name, function in functions:
        setattr(module, name, noting(function))
    try:
        yield lines
    finally:
        for module, name, function in functions:
            setattr(module, name, function)
