"""How numbers are written in C++."""

from __future__ import annotations

import struct


def number(value: float) -> str:
    """An fp32 constant: a literal where that is exact, else a double that is rounded like ours."""
    exact = struct.unpack("f", struct.pack("f", value))[0] == value
    return f"{float(value)!r}f" if exact else f"(float){float(value)!r}"
