"""Operators without a float64 kernel, computed by others, agree with torch's own in float32."""

import pytest
import torch

from plait.runtime.torch_private import GROUPED_MM
from plait.runtime.verification.wide_operators import grouped_mm, wide

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
