"""Sizes are read as people write them."""

import pytest

from plait.ir.errors import UsageError
from plait.ir.text.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("72GiB", 72 << 30),
        ("80GB", 80 * 10**9),
        ("1.5e9", 1_500_000_000),
        (" 12 mib ", 12 << 20),
        ("0.5 KiB", 512),
        ("7", 7),
        ("64G", 64 << 30),
    ],
)
def test_sizes(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GiB", "10XB", "-1GB", "0", "1e30", "nan", "1 2GB", "1e5e5"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="size"):
        parse_bytes(text)
