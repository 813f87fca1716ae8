"""Training of a module in 16 bits by one process: what rounding does to it, apart from any program.

The module computes in 16 bits, and its optimizer steps on float32 copies of its parameters, as people
write it by hand: gradients are copied there, new values back.
"""

from __future__ import annotations

from collections.abc import Callable
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

    Its buffers stay as they are, unless the module cannot run so.
    """
    try:
        return _trained(build, model, training, dtype, with_buffers=False)
    except RuntimeError:  # of operands of several types
        return _trained(build, model, training, dtype, with_buffers=True)


def _trained(
    build: Callable[[], Source],
    model: Model,
    training: Training,
    dtype: torch.dtype,
    *,
    with_buffers: bool,
) -> Reference:
    source = build()
    module = source.model
    exact = {p: _widened(p.detach()) for p in module.parameters()}
    batch = narrow(source, dtype, with_buffers=with_buffers)
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


def narrow(source: Source, dtype: torch.dtype, *, with_buffers: bool) -> Any:
    """Convert a module's parameters, and its buffers where asked, in place; gives its batch in that
    type. A module of this type already keeps what it has in others."""
    module = source.model
    first = next((p.dtype for p in module.parameters() if p.requires_grad), dtype)
    if first == dtype:
        return source.batch
    tensors: list[Tensor] = [*module.parameters(), *(module.buffers() if with_buffers else ())]
    for tensor in tensors:
        tensor.data = _in_type(tensor.data, dtype)
    values = dict(leaves(source.batch))
    return rebuild(source.batch, lambda path: _in_type(values[path], dtype))


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _widened(tensor: Tensor) -> Tensor:
    return _in_type(tensor, torch.promote_types(tensor.dtype, torch.float32)).clone()
