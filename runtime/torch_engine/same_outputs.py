"""Whether a module that was split over tensor ranks still computes what it did before.

A module's own code may count on whole widths (`view(batch, -1, heads, width)` with all heads): on a
shard it runs, and computes something else. One forward pass without gradients before and one after tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..torch_private import tree_leaves
from .sequence_styles import ModuleCall


class Fingerprint(NamedTuple):
    """A weighted sum of a layer's output, its norm, its number of elements."""

    value: float
    norm: float
    elements: int


Fingerprints = dict[str, Fingerprint]  # by layer
Whole = Callable[[Tensor], Tensor]  # the whole of a tensor of which a rank has its share of tokens


def fingerprints(
    module: nn.Module,
    layers: list[str],
    batch: Any,
    before: Fingerprints | None = None,
    whole: Whole | None = None,
) -> Fingerprints:
    """The fingerprint of every layer's output; empty for a module on the meta device.

    With those of `before` the module may stop early, and outputs of fewer elements are made `whole`.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return {}
    seen: Fingerprints = {}

    def _fingerprint(output: Any, path: str) -> Fingerprint:
        values = _first_tensor(output)
        if before and whole and path in before and values.numel() < before[path].elements:
            values = whole(values)
        return fingerprint(values)

    hooks = [
        module.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: seen.update({path: _fingerprint(output, path)})
        )
        for path in layers
    ]
    try:
        with torch.no_grad(), evaluating(module), suppress(*[RuntimeError] if before else []):
            module(**batch) if isinstance(batch, Mapping) else module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def calls_of(module: nn.Module, batch: Any) -> dict[str, ModuleCall]:
    """What every module is called with in one forward pass without gradients, and what it returns."""
    calls: dict[str, ModuleCall] = {}
    hooks = [
        child.register_forward_hook(
            lambda _, given, named, output, path=path: calls.update(
                {path: ModuleCall(given, named, output)}
            ),
            with_kwargs=True,
        )
        for path, child in module.named_modules()
    ]
    try:
        with torch.no_grad(), evaluating(module):
            module(**batch) if isinstance(batch, Mapping) else module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first_tensor(output: Any) -> Tensor:
    tensors = (x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point())
    return next(tensors)


def fingerprint(tensor: Tensor) -> Fingerprint:
    """The fingerprint of a tensor."""
    values = tensor.flatten().double()
    weights = torch.cos(torch.arange(len(values), device=values.device, dtype=torch.float64))
    return Fingerprint((values @ weights).item(), values.norm().item(), len(values))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode is as before afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def first_difference(before: Fingerprints, after: Fingerprints, dtype: torch.dtype) -> str | None:
    """The first layer that computes something else than before, or does not come to its end; None
    where none does."""
    tolerance = torch.finfo(dtype).eps ** 0.5
    for path, (value, norm, elements) in before.items():
        other = after.get(path)
        if other is None or other.elements != elements:
            return path
        if abs(other.value - value) > tolerance * max(norm, 1e-6):
            return path
    return None
