"""Operators without a float64 kernel, computed by others, agree with torch's own in float32."""

import pytest
import torch

from plait.ir.capture.decompositions.of_torch import torch_decompositions
from plait.runtime.torch_private import GROUPED_MM
from plait.runtime.verification.wide_operators import fake_quantize, grouped_mm, wide

FAKE_QUANTIZE = torch.ops.aten.fake_quantize_per_channel_affine_cachemask.default
OFFS = torch.tensor([4, 4, 12], dtype=torch.int32)


@pytest.mark.parametrize(
    "shapes",
    [((16, 8), (3, 8, 4)), ((16, 12), (12, 4)), ((3, 16, 8), (8, 16))],
    ids=("rows", "sums", "columns"),
)
def test_grouped_products(shapes) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(shape) for shape in shapes)
    ours, torchs = grouped_mm(a, b, OFFS), GROUPED_MM(a, b, OFFS)
    inside = (slice(0, 12), slice(None))
    if len(shapes[0]) == 3:
        inside = inside[::-1]
    elif len(shapes[1]) == 2:
        inside = (slice(None),)
    torch.testing.assert_close(ours[inside], torchs[inside])


def test_only_float64_is_computed_by_others() -> None:
    assert wide(GROUPED_MM, (torch.zeros(1),)) is GROUPED_MM
    assert wide(GROUPED_MM, (torch.zeros(1, dtype=torch.float64),)) is grouped_mm


@pytest.mark.parametrize("axis", [0, 1])
def test_fake_quantisation_of_channels(axis) -> None:
    """By the verifier, and by what a trace makes of it: out of range, at ties, gradients of x."""
    x = torch.linspace(-3, 3, 24).reshape(4, 6)
    channels = x.shape[axis]
    arguments = (
        0.25 * torch.arange(1, channels + 1),
        torch.arange(channels).int().clamp(max=4),
        axis,
        -4,
        4,
    )
    exact = FAKE_QUANTIZE(x, *arguments)
    for ours in (fake_quantize, torch_decompositions()[FAKE_QUANTIZE]):
        torch.testing.assert_close(ours(x, *arguments), exact, rtol=0, atol=0)
