"""Boundaries of pipeline stages in a chain of calls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

ROUNDING = 1e-12  # relative: sums of the same times in another order
CLOSE = 1e-4  # of the slowest stage: times are known less well


def even(repeated: list[bool], stages: int) -> list[int] | None:
    """Boundaries of stages with equally many repeated calls, or one less; others stay with the first
    or the last."""
    places = [i for i, again in enumerate(repeated) if again]
    if stages > len(places):
        return None
    return [0, *(places[len(places) * s // stages] for s in range(1, stages)), len(repeated)]


def partition(seconds: Sequence[float], stages: int) -> list[int] | None:
    """Boundaries of contiguous stages with the smallest slowest stage, each with some work."""
    working = [i for i, s in enumerate(seconds) if s > 0]
    if stages > len(working):
        return None
    ends = list(accumulate(seconds, initial=0.0))
    low = max(max(seconds), ends[-1] / stages)
    high = min(ends[-1], ends[-1] / stages + max(seconds))  # greedy stages are never slower
    best = _cut(ends, working, stages, high) or _cut(ends, working, stages, ends[-1])
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        found = _cut(ends, working, stages, middle)
        if found is None:
            low = middle
        else:
            best, slowest = found, max(ends[b] - ends[a] for a, b in pairwise(found))
            high = min(middle, slowest)
    return best


def _cut(ends: list[float], working: list[int], stages: int, limit: float) -> list[int] | None:
    """Greedy stages of at most `limit`; later stages always keep at least one call each. `ends`: the
    seconds before every call, and of all."""
    bounds = [0]
    for later in range(stages - 1, 0, -1):
        room = ends[bounds[-1]] + limit * (1 + ROUNDING)
        end = min(bisect_right(ends, room) - 1, working[-later])
        # calls without work stay with the stage before them
        if ends[end] <= ends[bounds[-1]]:
            return None
        bounds.append(end)
    return (
        [*bounds, len(ends) - 1] if ends[-1] - ends[bounds[-1]] <= limit * (1 + ROUNDING) else None
    )
