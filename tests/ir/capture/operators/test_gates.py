"""Gates of experts as text: what a user's gate does to columns is what its text does."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ir.capture.operators.gates import gated, order_of, recorded_gate


def clamped(both: Tensor) -> Tensor:
    gate, up = both[..., ::2], both[..., 1::2]
    gate, up = gate.clamp(max=0.7), up.clamp(min=-0.7, max=0.7)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def tanh_halves(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def sliced_halves(both: Tensor) -> Tensor:
    return F.silu(both[..., :4]) * both[..., 4:] / 2


def squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


@pytest.mark.parametrize(
    ("function", "order"),
    [
        (clamped, "interleaved"),
        (tanh_halves, "halves"),
        (sliced_halves, "halves"),
        (squared, "single"),
    ],
)
def test_the_text_is_the_gate(function, order):
    both = torch.randn(5, 8, dtype=torch.float64)
    text = recorded_gate(function, 8, has_gate=order != "single")
    assert text is not None
    assert order_of(text) == order
    assert torch.equal(gated(both, text), function(both))


@pytest.mark.parametrize(
    "function",
    [lambda x: x[..., ::2] * x[..., 4:], lambda x: x.softmax(-1)[..., ::2], lambda x: x.roll(1, 0)],
)
def test_what_is_more_than_pointwise_has_no_text(function):
    assert recorded_gate(function, 8, has_gate=True) is None
