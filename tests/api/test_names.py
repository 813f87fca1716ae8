"""`import plait` is quick and complete; sizes are read as people write them."""

import subprocess
import sys

import pytest

import plait
from plait.api.units import parse_bytes
from plait.ir.errors import UsageError


def test_import_loads_neither_torch_nor_a_solver():
    code = "import sys, plait; print(sorted({'torch', 'ortools', 'rich'} & set(sys.modules)))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in plait.__all__:
        assert getattr(plait, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = plait.nothing


def test_every_error_has_one_root_and_an_exit_code():
    for name in plait.__all__:
        if name.endswith("Error"):
            kind = getattr(plait, name)
            assert issubclass(kind, plait.PlaitError)
            assert kind.exit_code in (2, 3, 5, 6, 7)


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
