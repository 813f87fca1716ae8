"""Communication beside compute: the longer of the two, and a part of the shorter for the contention.

Kernels of collectives take processors and memory bandwidth from those beside them; Galvatron's shipped
profiles put the slowdown of the overlapped time at 1.13 (Miao et al. 2022).
"""

from __future__ import annotations

CONTENTION = 0.13


def beside(compute: float, communication: float) -> float:
    """Seconds of both when they run side by side and have nothing to wait for but each other."""
    return max(compute, communication) + CONTENTION * min(compute, communication)


def exposed(compute: float, communication: float) -> float:
    """What communication adds to the compute that it runs beside."""
    return beside(compute, communication) - compute
