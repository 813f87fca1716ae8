"""Training of a module in 16 bits by one process: what rounding does to it, apart from any program.

The module computes in 16 bits, and its optimizer steps on float32 copies of its parameters, as people
write it by hand: gradients are copied there, new values back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...ir.capture import Source
from ...ir.capture.batch import leaves, rebuild
from ...ir.model.model import Model
from .reference import in_its_precision
from .training import Reference, Training


class MasterWeights:
    """float32 copies of parameters, on which an optimizer steps instead."""

    def __init__(self, parameters: list[nn.Parameter], exact: dict[nn.Parameter, Tensor]) -> None:
        self.pairs = [(p, nn.Parameter(exact[p])) for p in parameters]
        self.optimizer: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Step on the copies, and round them into the module."""
        assert self.optimizer is not None
        for narrow, exact in self.pairs:
            exact.grad = None if narrow.grad is None else narrow.grad.to(exact.dtype)
        self.optimizer.step()
        for narrow, exact in self.pairs:
            narrow.copy_(exact)


def in_half(
    build: Callable[[], Source], model: Model, training: Training, dtype: torch.dtype
) -> Reference:
    """Train the module that `build` gives in its own types, in 16 bits.

    Its buffers stay as they are, but for those of names with which the module cannot run so.
    """
    names = frozenset(map(_last_name, dict(build().model.named_buffers())))

    def trained(wide: frozenset[str], steps: int) -> Reference | None:
        try:
            return _trained(build, model, training._replace(steps=steps), dtype, wide)
        except RuntimeError:  # of operands of several types
            return None

    whole = trained(names, training.steps)
    if whole is not None:
        return whole
    wide = frozenset(name for name in names if trained(frozenset({name}), 1) is not None)
    return _trained(build, model, training, dtype, wide)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _trained(
    build: Callable[[], Source],
    model: Model,
    training: Training,
    dtype: torch.dtype,
    wide: Collection[str],
) -> Reference:
    source = build()
    module = source.model
    exact = {p: _widened(p.detach()) for p in module.parameters()}
    batch = narrow(source, dtype, wide)
    masters: list[MasterWeights] = []

    def optimizer(parameters: list[nn.Parameter], **arguments: Any) -> MasterWeights:
        weights = MasterWeights(parameters, exact)
        weights.optimizer = training.optimizer([copy for _, copy in weights.pairs], **arguments)
        masters.append(weights)
        return weights

    narrowed = replace(source, batch=batch)
    trained = in_its_precision(lambda: narrowed, model, training._replace(optimizer=optimizer))
    copies = {p: copy.detach() for weights in masters for p, copy in weights.pairs}
    named = module.named_parameters(remove_duplicate=False)
    state = {name: copies[p] for name, p in named if p in copies}
    return trained._replace(state={**trained.state, **state})


def narrow(source: Source, dtype: torch.dtype, wide: Collection[str]) -> Any:
    """Convert a module's parameters, and its buffers but those of the names `wide`, in place; gives its
    batch in that type. A module of this type already keeps what it has in others."""
    module = source.model
    first = next((p.dtype for p in module.parameters() if p.requires_grad), dtype)
    if first == dtype:
        return source.batch
    buffers = [b for path, b in module.named_buffers() if _last_name(path) not in wide]
    for tensor in (*module.parameters(), *buffers):
        tensor.data = _in_type(tensor.data, dtype)
    values = dict(leaves(source.batch))
    return rebuild(source.batch, lambda path: _in_type(values[path], dtype))


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _widened(tensor: Tensor) -> Tensor:
    return _in_type(tensor, torch.promote_types(tensor.dtype, torch.float32)).clone()
