"""Pareto fronts: items that no other item beats or equals in every objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import le
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Objectives = tuple[float, ...]  # smaller is better


def no_worse(one: Objectives, other: Objectives) -> bool:
    """Whether `one` is at most `other` in every objective."""
    return all(map(le, one, other))


def pareto(
    items: Iterable[T],
    objectives: Callable[[T], Objectives],
    beats: Callable[[Objectives, Objectives], bool] = no_worse,
) -> list[T]:
    """Items that no other beats, in order of their objectives; the first of equal ones.

    `beats` may be looser than `no_worse`, so that near ties leave the front as well.
    """
    ranked = sorted(((objectives(item), item) for item in items), key=lambda pair: pair[0])
    front: list[tuple[Objectives, T]] = []
    for values, item in ranked:
        if not any(beats(better, values) for better, _ in front):
            front.append((values, item))
    return [item for _, item in front]


def undominated(dominates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the items that stay where `dominates[x, y]` says that y may replace x.

    Of items that replace each other the first stays.
    """
    stays = np.ones(len(dominates), dtype=bool)
    for item in reversed(range(len(dominates))):
        others = dominates[item] & stays
        others[item] = False
        stays[item] = not others.any()
    return stays
