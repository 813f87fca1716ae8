"""What a forward gives to its caller: the tensors inside, and how to put others in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TraceError
from .python_state.snapshot import SCALARS


class ForwardOutputs:
    """The tensors of a model's output in order, once a forward was recorded.

    Mappings (those of Hugging Face among them), lists, tuples and named tuples are looked into.
    Numbers, texts and flags stay as recorded; anything else, such as a cache of keys and values, is
    `left_out`: None stands in its place.
    """

    def __init__(self) -> None:
        self.output: Any = None
        self.left_out: list[str] = []

    def take(self, output: Any) -> list[Tensor]:
        """Remember an output; gives its tensors. Raises TraceError where it has none."""
        self.left_out.clear()
        tensors: list[Tensor] = []
        self.output = self._replace(output, tensors, "output")
        if not tensors:
            raise TraceError(f"the model gives no tensor, but a {type(output).__name__}")
        return tensors

    def filled(self, values: Sequence[Tensor]) -> Any:
        """The output with these tensors in the place of the recorded ones."""
        return _filled(self.output, values)

    def _replace(self, part: Any, tensors: list[Tensor], where: str) -> Any:
        if isinstance(part, Tensor):
            tensors.append(part)
            return _Place(len(tensors) - 1)
        if isinstance(part, Mapping):
            replaced = {k: self._replace(v, tensors, f"{where}[{k!r}]") for k, v in part.items()}
            return _Items(type(part), replaced)
        if isinstance(part, list | tuple):
            items = [self._replace(v, tensors, f"{where}[{n}]") for n, v in enumerate(part)]
            return _Items(type(part), items)
        if isinstance(part, SCALARS):
            return part
        self.left_out.append(f"{where} (a {type(part).__name__})")
        return None


class _Place:
    """Where the tensor of this number belongs."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Items:
    """A mapping or sequence of a kind."""

    def __init__(self, kind: type, items: dict[Any, Any] | list[Any]) -> None:
        self.kind, self.items = kind, items


def _filled(part: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(part, _Place):
        return values[part.number]
    if not isinstance(part, _Items):
        return part
    if isinstance(part.items, dict):
        filled = {key: _filled(item, values) for key, item in part.items.items()}
        present = {key: item for key, item in filled.items() if item is not None}
        return filled if part.kind is dict else part.kind(**present)
    items = [_filled(item, values) for item in part.items]
    if hasattr(part.kind, "_fields"):
        return part.kind(*items)
    return items if part.kind is list else tuple(items)


def stand_in_loss(tensors: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every output of floating point, for a trace that is never trained.

    Raises TraceError where no output is of floating point.
    """
    floats = [t for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        raise TraceError("the model gives no tensor of floating point")
    return torch.stack([t.sum() for t in floats]).sum()


@contextlib.contextmanager
def evaluating(*roots: Any) -> Iterator[None]:
    """Modules as after `eval()`, and as they were afterwards."""
    modules = [m for root in roots if isinstance(root, nn.Module) for m in root.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
