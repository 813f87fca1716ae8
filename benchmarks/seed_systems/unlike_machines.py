"""Figures of ranks that differ in speed, measured on this machine."""

from __future__ import annotations

from pathlib import Path

from plait.benchmarks.partial_reduce import CASES, rows


def partial_reduce_gain(_: Path | None) -> float | None:
    """Times as many samples/s as an all-reduce gives, where one rank of four is slow."""
    measured = rows()
    return measured[CASES[1]].samples_per_second / measured[CASES[0]].samples_per_second
