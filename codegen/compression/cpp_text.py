"""Print numbers as C++ constants."""

from __future__ import annotations

import struct


def number(value: float) -> str:
    """Print an fp32 constant: a float literal where exact, else a double cast to float."""
    exact = struct.unpack("f", struct.pack("f", value))[0] == value
    return f"{float(value)!r}f" if exact else f"(float){float(value)!r}"
