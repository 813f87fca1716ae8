"""Boundaries of pipeline stages in a chain of calls."""

from __future__ import annotations

from itertools import accumulate


def even(repeated: list[bool], stages: int) -> list[int] | None:
    """Boundaries of stages with equally many repeated calls, or one less; others stay with the first
    or the last."""
    places = [i for i, again in enumerate(repeated) if again]
    if stages > len(places):
        return None
    return [0, *(places[len(places) * s // stages] for s in range(1, stages)), len(repeated)]


def partition(seconds: list[float], stages: int) -> list[int] | None:
    """Boundaries of contiguous stages with the smallest slowest stage, each with some work."""
    if stages > sum(s > 0 for s in seconds):
        return None
    low, high = max(max(seconds), sum(seconds) / stages), sum(seconds)
    best = _cut(seconds, stages, high)
    for _ in range(40):
        middle = (low + high) / 2
        found = _cut(seconds, stages, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _cut(seconds: list[float], stages: int, limit: float) -> list[int] | None:
    """Greedy stages of at most `limit`; later stages always keep at least one call each."""
    bounds, load = [0], 0.0
    left = list(accumulate((s > 0 for s in reversed(seconds)), initial=0))[::-1]
    for i, cost in enumerate(seconds):
        remaining = stages - len(bounds)
        full = load + cost > limit or (load > 0 and cost > 0 and left[i] <= remaining)
        if full and load > 0:
            bounds.append(i)
            load = 0.0
        load += cost
        if load > limit * (1 + 1e-12):
            return None
    if len(bounds) != stages:
        return None
    return [*bounds, len(seconds)]
