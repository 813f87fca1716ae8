"""Measurements of a machine as they are written to a file: amounts and seconds."""

from __future__ import annotations

import msgspec


class MeasuredCost(msgspec.Struct, frozen=True):
    """Seconds of one call of an operator, or of a collective in groups of `ranks`.

    `amount` of `by`: "flops" or "bytes".
    """

    name: str
    by: str
    amount: float
    seconds: float
    dtype: str = "float32"
    ranks: int = 0


class MachineCosts(msgspec.Struct, frozen=True):
    """A machine and its measurements, taken on `ranks` ranks at the same time.

    `device` is "cpu" or "cuda"; `memory_bytes` is what each rank may use.
    """

    name: str
    device: str
    ranks: int
    memory_bytes: int
    torch_version: str
    costs: tuple[MeasuredCost, ...]
    processors: int = 1
