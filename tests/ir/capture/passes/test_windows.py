"""Views of memory and numbers that code writes down, beside the module itself."""

import math

import pytest
import torch
from torch import nn

from plait.ir.capture import load_source, materialize, trace
from plait.ir.lowering.cast import cast_model
from plait.tests.ir.capture.judged import Net, agrees, batch, make

WIDTH = 8


def frames(x):
    """Overlapping windows and the main diagonal, by strides."""
    return x.contiguous().as_strided((len(x), 5, 4), (2 * WIDTH, 3, 1)).sum((1, 2))[:, None] + x


def diagonals(x):
    square = x.t() @ x
    return x + square.diagonal().sum() + square.diagonal(1).sum() + square.diagonal(-2).prod()


class Written(nn.Module):
    """A weight for each of three columns, and a check of the loss that only raises."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, x, y):
        weight = torch.tensor([0.1, 0.5, 0.9], dtype=x.dtype)
        loss = (self.linear(x) * weight).square().mean()
        if not math.isfinite(loss.item()) or math.isnan(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        return loss


class Spectrum(nn.Module):
    """Weights of some frequencies, which are complex numbers, written beside zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x, y):
        spectrum = torch.fft.rfft(x)
        scaled = torch.zeros_like(spectrum)
        scaled[:, 1:4] = spectrum[:, 1:4] * self.weight
        return torch.fft.irfft(scaled, n=x.shape[-1]).square().mean()


@pytest.mark.parametrize("change", [frames, diagonals])
def test_views_of_memory_are_what_torch_reads(change) -> None:
    agrees(make(lambda: Net(change)), batch())


def test_no_view_of_memory_is_opaque() -> None:
    targets = {
        op.target for f in agrees(make(lambda: Net(frames)), batch()).functions for op in f.ops
    }
    assert "aten.as_strided.default" not in targets


def test_numbers_are_lifted_as_they_are_written() -> None:
    model = cast_model(trace(Written(), {k: v.float() for k, v in batch().items()}), "float64")
    values = [p.values for p in model.parameters if p.values is not None]
    assert any(0.1 in v for v in values)


def source():
    return Spectrum(), batch()


def test_complex_weights_are_lifted_to_complex_numbers() -> None:
    text = f"{__file__}:source"
    assert load_source(text).model is not None
    lifted = materialize(text, dtype="float64")
    assert lifted.model.weight.dtype == torch.complex128
    agrees(lifted.model, lifted.batch)
