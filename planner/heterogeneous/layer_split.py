"""Splits the calls of a pipeline replica over its device groups: the slowest as fast as possible.

Groups are in a fixed order. Within a time per micro-batch every group takes as many calls as it
can; more calls take longer and need more memory, so that is best for the later groups too.
Bisection finds the least time within which the last call is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from .group_prices import GroupPrices, GroupType, StageChoice

CLOSE = 1e-4  # relative, of the slowest device group


class LayerSplit:
    """Splits the calls of a model over device groups, for micro-batches of `samples`."""

    def __init__(
        self, group_prices: GroupPrices, group_types: Sequence[GroupType], samples: int
    ) -> None:
        self.group_prices, self.group_types, self.samples = group_prices, group_types, samples
        self.calls = len(group_prices.model.calls)

    def choice(self, position: int, first: int, last: int) -> StageChoice | None:
        """Choice of the group at a position for these calls; None where they do not fit."""
        after = len(self.group_types) - 1 - position
        return self.group_prices.fastest_choice(
            self.group_types[position], self.samples, (first, last), after
        )

    def fastest_bounds(self) -> list[int] | None:
        """Boundaries with the least slowest group; None where no split fits the memory."""
        bounds = self.bounds_within(float("inf"))
        if bounds is None:
            return None
        low, high = 0.0, self.slowest(bounds)
        while high - low > CLOSE * high:
            middle = (low + high) / 2
            closer = self.bounds_within(middle)
            if closer is None:
                low = middle
            else:
                bounds, high = closer, self.slowest(closer)
        return bounds

    def slowest(self, bounds: Sequence[int]) -> float:
        """Seconds of the slowest group per micro-batch."""
        return max(choice.seconds for choice in self.choices(bounds) or ())

    def choices(self, bounds: Sequence[int]) -> list[StageChoice] | None:
        """Choice of every group; None where one does not fit."""
        choices = [self.choice(position, *ends) for position, ends in enumerate(pairwise(bounds))]
        fitting = [choice for choice in choices if choice is not None]
        return fitting if len(fitting) == len(choices) else None

    def bounds_within(self, seconds: float) -> list[int] | None:
        """Boundaries where no group takes longer and every group has work; None where there are
        none.
        """
        bounds = [0]
        for position in range(len(self.group_types)):
            later = len(self.group_types) - 1 - position
            last = self.furthest_call(position, bounds[-1], self.calls - later, seconds)
            if last is None:
                return None
            bounds.append(last)
        return bounds if bounds[-1] == self.calls else None

    def furthest_call(self, position: int, first: int, limit: int, seconds: float) -> int | None:
        """The last boundary, up to `limit`, that a group reaches from `first` within `seconds`."""

        def feasible(last: int) -> bool:
            choice = self.choice(position, first, last)
            return choice is not None and choice.seconds <= seconds

        return _last_feasible(feasible, first + 1, limit)

    def refine(self, bounds: list[int], cost: Callable[[list[int]], float]) -> list[int]:
        """Move boundaries by one call at a time while that lowers `cost`."""
        best: list[int] = bounds
        least = cost(bounds)
        moved = True
        while moved:
            moved = False
            for i in range(1, len(best) - 1):
                for step in (-1, 1):
                    other: list[int] = [*best[:i], best[i] + step, *best[i + 1 :]]
                    if not best[i - 1] < other[i] < best[i + 1]:
                        continue
                    seconds = cost(other)
                    if seconds < least * (1 - CLOSE):
                        best, least, moved = other, seconds, True
        return best


def _last_feasible(feasible: Callable[[int], bool], low: int, high: int) -> int | None:
    """The last feasible number from `low` to `high`, by bisection.

    All numbers before a feasible one are feasible, but for the first few: a group whose calls have
    no work is not.
    """
    start = next((n for n in range(low, high + 1) if feasible(n)), None)
    if start is None:
        return None
    low = start
    while low < high:
        middle = (low + high + 1) // 2
        if feasible(middle):
            low = middle
        else:
            high = middle - 1
    return low
