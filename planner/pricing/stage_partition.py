"""Partition of a chain of calls into contiguous pipeline stages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

ROUNDING = 1e-12  # relative: sums of the same times in another order
CLOSE = 1e-4  # of the slowest stage: times are known less well


def even(repeated: list[bool], stages: int) -> list[int] | None:
    """Boundaries of stages whose numbers of repeated calls differ by at most one.

    Other calls go to the first or the last stage. None with fewer repeated calls than stages.
    """
    repeated_positions = [i for i, is_repeated in enumerate(repeated) if is_repeated]
    if stages > len(repeated_positions):
        return None
    return [
        0,
        *(repeated_positions[len(repeated_positions) * s // stages] for s in range(1, stages)),
        len(repeated),
    ]


def behind_share(costs: Sequence[float], stages: int) -> list[int] | None:
    """Boundaries of stages that end behind the call with which the costs so far exceed their share;
    the last stages have one call each where calls run out. None with fewer calls than stages.
    """
    prefix, count = list(accumulate(costs)), len(costs)
    if stages > count:
        return None
    bounds = [0]
    for i, cost in enumerate(prefix[:-1], 1):
        if len(bounds) < stages and cost > prefix[-1] * len(bounds) / stages * (1 + ROUNDING):
            bounds.append(i)
    missing = stages - len(bounds)
    latest = [min(b, count - missing - len(bounds) + i) for i, b in enumerate(bounds)]
    return [*latest, *range(count - missing, count + 1)]


def partition(seconds: Sequence[float], stages: int) -> list[int] | None:
    """Boundaries of contiguous stages that minimise the slowest stage's seconds, to 1e-4.

    None with fewer calls that take time than stages. Bisects the bound of a greedy partition.
    """
    positions_with_work = [i for i, s in enumerate(seconds) if s > 0]
    if stages > len(positions_with_work):
        return None
    prefix_seconds = list(accumulate(seconds, initial=0.0))
    low = max(max(seconds), prefix_seconds[-1] / stages)
    high = min(
        prefix_seconds[-1], prefix_seconds[-1] / stages + max(seconds)
    )  # greedy stages are never slower
    best = _greedy_bounds(prefix_seconds, positions_with_work, stages, high) or _greedy_bounds(
        prefix_seconds, positions_with_work, stages, prefix_seconds[-1]
    )
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        bounds = _greedy_bounds(prefix_seconds, positions_with_work, stages, middle)
        if bounds is None:
            low = middle
        else:
            best, slowest = (
                bounds,
                max(prefix_seconds[b] - prefix_seconds[a] for a, b in pairwise(bounds)),
            )
            high = min(middle, slowest)
    return best


def _greedy_bounds(
    prefix_seconds: list[float], positions_with_work: list[int], stages: int, limit: float
) -> list[int] | None:
    """Greedy stages of at most `limit` seconds; each later stage keeps at least one call with work.

    `prefix_seconds`: seconds before every call, and of all calls.
    """
    bounds = [0]
    for later in range(stages - 1, 0, -1):
        limit_from_start = prefix_seconds[bounds[-1]] + limit * (1 + ROUNDING)
        end = min(bisect_right(prefix_seconds, limit_from_start) - 1, positions_with_work[-later])
        # calls without work stay with the stage before them
        if prefix_seconds[end] <= prefix_seconds[bounds[-1]]:
            return None
        bounds.append(end)
    return (
        [*bounds, len(prefix_seconds) - 1]
        if prefix_seconds[-1] - prefix_seconds[bounds[-1]] <= limit * (1 + ROUNDING)
        else None
    )
