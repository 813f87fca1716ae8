"""Traced models against the user's own module: loss and gradients of one step, in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.ir.errors import TraceError
from plait.tests.ir.capture import eager

WIDTH, CLASSES, SAMPLES = 8, 5, 4


class Block(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.up(self.norm(x)))
        return x + self.down(h if self.change is None else self.change(h))


class Encoder(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(change) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Net(nn.Module):
    """Three equal blocks between two maps; `change` is applied inside every block."""

    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Linear(WIDTH, WIDTH), Encoder(change)
        self.head = nn.Linear(WIDTH, CLASSES)

    def hidden(self, x: Tensor) -> Tensor:
        return self.encoder(self.embed(x))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.hidden(x)), y)


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def batch(**more: Any) -> dict[str, Any]:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, WIDTH, generator=made, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, CLASSES, (SAMPLES,), generator=made), **more}


def agrees(model: nn.Module, given: Any, loss_fn: Any = None) -> Any:
    """The trace computes the loss, the gradients and the buffers of eager; gives the trace."""
    before = {n: t.detach().clone() for n, t in named(model).items()}
    traced = trace(model, given, loss_fn)
    loss, gradients, buffers = execute(traced, before, eager.tensors(traced, given))
    output = model(**given)
    expected = output if loss_fn is None else loss_fn(output, given)
    expected.backward()
    assert abs(loss - expected) <= 1e-12 * abs(expected)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name not in gradients or not gradients[name].any(), name
            continue
        scale = parameter.grad.abs().max().clamp(min=1e-9)
        assert (gradients[name] - parameter.grad).abs().max() / scale < 1e-9, name
    for name, buffer in model.named_buffers():
        now = buffers.get(name, before[name])
        assert torch.allclose(now, buffer, rtol=1e-12), name
    return traced


def named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def refused(
    model: nn.Module, given: Any, *fragments: str, at: Any = None, loss_fn: Any = None
) -> str:
    """The trace is refused, in these words, with the file (and line of `at`, or inside it)."""
    with pytest.raises(TraceError) as caught:
        trace(model, given, loss_fn)
    text = str(caught.value)
    for fragment in fragments:
        assert fragment in text, text
    if at is not None:
        lines, start = inspect.getsourcelines(at)
        file = inspect.getsourcefile(at)
        places = [f"{file}:{start + n}:" for n in range(len(lines))]
        assert any(place in text for place in places), text
    return text
