"""Numbers with units, as people write and read them."""

from __future__ import annotations

import re

from ..errors import UsageError

# fmt: off
UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}
# fmt: on
LEAST_MEMORY = 1 << 20  # bytes: nothing trains in less


def parse_bytes(text: str) -> int:
    """`72GiB`, `80GB`, `1.5e9` in bytes; raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = match[2].upper() if match else "?"
    if match is None or unit not in UNITS:
        raise UsageError(f"{text!r} is not a size; write it like 72GiB, 80GB or 8e10")
    amount = float(match[1]) * UNITS[unit]
    if not 0 < amount < 1 << 60:
        raise UsageError(f"{text!r} is not a sensible size")
    return int(amount)


def parse_memory(memory: int | str | None) -> int | None:
    """An amount of memory as bytes; text (`72GiB`) is parsed. Raises UsageError, also for a number
    without a unit that can hardly be meant in bytes."""
    if not isinstance(memory, str):
        if memory is not None and 0 <= memory < LEAST_MEMORY:
            raise UsageError(f"{memory} of memory are bytes; write '{memory}GiB' or '{memory}GB'")
        return memory
    amount = parse_bytes(memory)
    if amount < LEAST_MEMORY and memory.strip()[-1:].isdigit():
        raise UsageError(f"{memory} of memory has no unit; write {memory}GiB or {memory}GB")
    return amount


def figure(value: float) -> str:
    """Three digits, or all before the point: 1.42, 31, 1000; never an exponent."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """8.03 B, 262 k."""
    for size, letter in COUNTS:
        if number >= size:
            return f"{figure(number / size)} {letter}"
    return f"{number:.0f}"


def count_of(number: int, name: str, ending: str = "s") -> str:
    """1 stage, 16 stages; `ending` where it is not an s."""
    return f"{number} {name}" + ("" if number == 1 else ending)


def micro_batches(number: int) -> str:
    """1 micro-batch, 16 micro-batches."""
    return count_of(number, "micro-batch", "es")


def gib(amount: float) -> str:
    return f"{amount / 2**30:.2f} GiB"


def size(amount: float) -> str:
    """1.5 GiB, 28.5 MiB, 12 B."""
    for unit, letter in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if amount >= unit:
            return f"{figure(amount / unit)} {letter}"
    return f"{figure(amount)} B"


def seconds(duration: float) -> str:
    """1.42 s, 3.1 ms, 12 µs."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(duration) >= size:
            return f"{figure(duration / size)} {unit}"
    return f"{figure(duration * 1e9)} ns" if duration else "0 s"
