"""Memory that a step of an optimizer takes beside its states, counted on small tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence

import torch
from torch import nn

from ..state.optimizer import OptimizerRequest, build, is_instance
from ..state.optimizer_binding import prefer_fused
from .live_bytes import LiveBytes

ELEMENTS = 4096  # of each small tensor
MOST_TENSORS = 32
UNKNOWN = 8  # where it cannot be tried; more than any of torch's takes
SHAPES = {0: (), 1: (4096,), 2: (64, 64), 3: (16, 16, 16)}
STEPS = 8  # RAdam does all that it does from the sixth on


def step_vectors(
    request: OptimizerRequest,
    named: Sequence[tuple[str, nn.Parameter]],
    sparse: Collection[str] = (),
) -> int:
    """Tensors of a parameter's size that a step on a CPU makes for itself at once, rounded up; `sparse`
    names parameters whose gradients are of rows.

    An optimizer that is built already is tried as its class with its defaults.
    """
    if is_instance(request.factory):
        kind, defaults = type(request.factory), getattr(request.factory, "defaults", {})
        known = inspect.signature(kind).parameters
        arguments = {name: value for name, value in defaults.items() if name in known}
        request = OptimizerRequest(kind, arguments)  # type: ignore[arg-type]
    try:
        with torch.random.fork_rng(devices=[]):
            return _counted(request, [(n, _small(p)) for n, p in named[:MOST_TENSORS]], sparse)
    except Exception:  # of the user's own code, or of groups that ask for other tensors
        return UNKNOWN


def _small(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of as many dimensions."""
    values = torch.randn(SHAPES.get(parameter.dim(), (8, 8, 8, 8)))
    return nn.Parameter(values.to(parameter.dtype))


def _counted(
    request: OptimizerRequest, named: Sequence[tuple[str, nn.Parameter]], sparse: Collection[str]
) -> int:
    optimizer = build(request, named)
    prefer_fused(optimizer, {p for name, p in named if name in sparse})
    vector_bytes = ELEMENTS * min((p.element_size() for _, p in named), default=4)
    most = 0.0
    for step in range(STEPS):
        for name, parameter in named:
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.to_sparse(1) if name in sparse else gradient
        with LiveBytes() as live, torch.no_grad():
            optimizer.step()
        if step:  # the first one makes the states
            most = max(most, live.peak / vector_bytes)
    return math.ceil(most - 0.01)  # but for scalars
