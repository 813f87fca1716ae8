"""Boundaries of a split, moved by single operators until the slowest stage is as fast as it gets.

Neighbours first take about as long; where a change needs all stages to give way at once, limits of
the slowest stage are halved: under each, every stage takes as many operators as it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plait.benchmarks.rivals.aceso.stage_times import Place, StageTimes

SWEEPS = 8  # over all boundaries, at most
HALVINGS = 6  # of the range of limits
LOWEST = 0.96  # of the slowest stage: lower limits are not tried
BEYOND = 2  # operators after the first too many: messages there may be smaller


class SplitTimes:
    """Estimated microseconds of the stages of one split, whose GPUs are given."""

    def __init__(self, times: Sequence[StageTimes], places: Sequence[Place]) -> None:
        self.times, self.places = times, places
        self.known = dict[tuple[int, int, int], float]()

    def micros(self, number: int, first: int, last: int) -> float:
        key = (number, first, last)
        if key not in self.known:
            self.known[key] = self.times[number].estimate(first, last, self.places[number])
        return self.known[key]

    def slowest(self, bounds: Sequence[int]) -> float:
        return max(self.micros(i, *ends) for i, ends in enumerate(pairwise(bounds)))


def alternated(stages: SplitTimes, bounds: Sequence[int]) -> list[int]:
    """Boundaries moved one after the other, until neighbours take about as long."""
    bounds, unmoved = list(bounds), list[int]()
    for _ in range(SWEEPS):
        if bounds == unmoved:
            break
        unmoved = list(bounds)
        for i in range(1, len(bounds) - 1):
            bounds[i] = _even_boundary(stages, bounds, i)
    return bounds


def _even_boundary(stages: SplitTimes, bounds: Sequence[int], i: int) -> int:
    """Where the stages before and after a boundary take about as long."""
    left, right = bounds[i - 1], bounds[i + 1]

    def slower(n: int) -> float:
        return max(stages.micros(i - 1, left, n), stages.micros(i, n, right))

    low, high = left + 1, right - 1
    while low < high:  # the left stage grows and the right one shrinks
        middle = (low + high) // 2
        if stages.micros(i - 1, left, middle) < stages.micros(i, middle, right):
            low = middle + 1
        else:
            high = middle
    near = {n for n in (low - 1, low, bounds[i]) if left < n < right}
    return min(sorted(near), key=slower)


def lowered(stages: SplitTimes, bounds: Sequence[int]) -> list[int]:
    """Boundaries under the lowest limit that halvings find."""
    best = list(bounds)
    high = stages.slowest(best)
    low = LOWEST * high
    for _ in range(HALVINGS):
        limit = (low + high) / 2
        lower = _within(stages, best, limit)
        if lower is None:
            low = limit
        else:
            best, high = lower, stages.slowest(lower)
    return best


def _within(stages: SplitTimes, guess: Sequence[int], limit: float) -> list[int] | None:
    """Boundaries where every stage takes as many operators as the limit lets it; None: too few."""
    bounds, operators, count = [0], guess[-1], len(guess) - 1
    for i in range(count - 1):
        most = operators - (count - 1 - i)
        end = _farthest(stages, (i, bounds[-1]), (guess[i + 1], most), limit)
        if end is None:
            return None
        bounds.append(end)
    fits = stages.micros(count - 1, bounds[-1], operators) <= limit
    return [*bounds, operators] if fits else None


def _farthest(
    stages: SplitTimes, start: tuple[int, int], ends: tuple[int, int], limit: float
) -> int | None:
    """The last end near a guess at which a stage, of a number and first operator, is in the limit."""
    (number, first), (guess, most) = start, ends
    end = min(max(guess, first + 1), most)
    while end > first and stages.micros(number, first, end) > limit:
        end -= 1
    if end <= first:
        return None
    beyond = 1
    while beyond <= BEYOND and end + beyond <= most:
        if stages.micros(number, first, end + beyond) <= limit:
            end, beyond = end + beyond, 0
        beyond += 1
    return end
