"""Overlap of communication and compute: the longer of the two, plus contention.

Collective kernels take processors and memory bandwidth from concurrent compute kernels; Galvatron's
shipped profiles put the slowdown of the overlapped time at 1.13 (Miao et al. 2022)."""

from __future__ import annotations

CONTENTION = 0.13


def overlapped_seconds(compute: float, communication: float) -> float:
    """Seconds of both when they run concurrently without dependencies."""
    return max(compute, communication) + CONTENTION * min(compute, communication)


def exposed_seconds(compute: float, communication: float) -> float:
    """Seconds that communication adds to the compute it overlaps with."""
    return overlapped_seconds(compute, communication) - compute
