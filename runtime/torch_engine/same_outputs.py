"""Whether a module that was split over tensor ranks still computes what it did before.

A module's own code may count on whole widths (`view(batch, -1, heads, width)` with all heads): on a
shard it runs, and computes something else. One forward pass without gradients before and one after tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_private import tree_leaves

Fingerprints = dict[
    str, tuple[float, float]
]  # by layer: a weighted sum of its output, and its norm


def fingerprints(
    module: nn.Module, layers: list[str], batch: Any, may_stop: bool = False
) -> Fingerprints:
    """One number of every layer's output, beside its scale, as far as the module runs; empty for a
    module on the meta device."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return {}
    seen: Fingerprints = {}
    hooks = [
        module.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: seen.update({path: _fingerprint(output)})
        )
        for path in layers
    ]
    try:
        with torch.no_grad(), _evaluating(module), suppress(*[RuntimeError][: int(may_stop)]):
            module(**batch) if isinstance(batch, Mapping) else module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _fingerprint(output: Any) -> tuple[float, float]:
    tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    values = torch.cat([x.flatten().double() for x in tensors[:1]])
    weights = torch.cos(torch.arange(len(values), device=values.device, dtype=torch.float64))
    return (values @ weights).item(), values.norm().item()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
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
    for path, (value, scale) in before.items():
        if path not in after or abs(after[path][0] - value) > tolerance * max(scale, 1e-6):
            return path
    return None
