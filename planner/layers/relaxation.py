"""Lower bounds by relaxation: the least cost within bytes, if layers were divisible.

    cost │╲
         │ ╲__          choices on their lower hull; layers move down it, steepest first
         │    ╲____
         └────────── bytes

The curve of several layers is the sum of theirs: their segments in order of slope.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class CostCurve(NamedTuple):
    """A convex, falling cost over bytes, by its corners."""

    size: NDArray[np.float64]
    cost: NDArray[np.float64]

    def at(self, size: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The least cost within `size` bytes; infinite where nothing fits."""
        return np.asarray(np.interp(size, self.size, self.cost, left=np.inf))

    def scaled(self, count: int) -> CostCurve:
        """The curve of `count` such layers."""
        return CostCurve(self.size * count, self.cost * count) if count else NOTHING


NOTHING = CostCurve(np.zeros(1), np.zeros(1))


def hull(sizes: Sequence[float], costs: Sequence[float]) -> CostCurve:
    """The falling part of the lower hull of at least one point."""
    corners: list[tuple[float, float]] = []
    for size, cost in sorted(zip(sizes, costs, strict=True)):
        if corners and cost >= corners[-1][1]:
            continue
        while len(corners) > 1 and _above(corners[-2], corners[-1], (size, cost)):
            corners.pop()
        corners.append((size, cost))
    return CostCurve(*np.array(corners).T)


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def sum_curves(curves: Iterable[CostCurve]) -> CostCurve:
    """The sum of convex curves: the least bytes of each, then the steepest segments first."""
    curves = list(curves)
    if len(curves) == 1:
        return curves[0]
    widths = np.concatenate([np.diff(c.size) for c in curves])
    drops = np.concatenate([np.diff(c.cost) for c in curves])
    order = np.argsort(drops / widths, kind="stable") if len(widths) else slice(0)
    sizes = [sum(float(c.size[0]) for c in curves), *widths[order]]
    costs = [sum(float(c.cost[0]) for c in curves), *drops[order]]
    return CostCurve(np.cumsum(sizes), np.cumsum(costs))
