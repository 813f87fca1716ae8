"""Where the layers of a line are cut: the slowest crew as fast as can be, none over its memory.

Crews are in a fixed order. Within a time per micro-batch every crew takes as many calls as it can;
more calls take longer and need more memory, so that is the best it can do for those behind it, and the
least time within which the last call is reached is found by halving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from .group_prices import Choice, Crews, Kind

CLOSE = 1e-4  # relative, of the slowest crew


class Cut:
    """Cuts the calls of a model over crews, for micro-batches of `samples`."""

    def __init__(self, crews: Crews, kinds: Sequence[Kind], samples: int) -> None:
        self.crews, self.kinds, self.samples = crews, kinds, samples
        self.calls = len(crews.model.calls)

    def choice(self, place: int, first: int, last: int) -> Choice | None:
        """What the crew at a place does with these calls; None where they do not fit."""
        after = len(self.kinds) - 1 - place
        return self.crews.best(self.kinds[place], self.samples, first, last, after)

    def best(self) -> list[int] | None:
        """Boundaries of the crews' calls, None where memory is not enough however they are cut."""
        made = self.within(float("inf"))
        if made is None:
            return None
        low, high = 0.0, self.slowest(made)
        while high - low > CLOSE * high:
            middle = (low + high) / 2
            found = self.within(middle)
            if found is None:
                low = middle
            else:
                made, high = found, self.slowest(found)
        return made

    def slowest(self, bounds: Sequence[int]) -> float:
        return max(choice.seconds for choice in self.choices(bounds) or ())

    def choices(self, bounds: Sequence[int]) -> list[Choice] | None:
        """What every crew does; None where one does not fit."""
        made = [self.choice(place, *ends) for place, ends in enumerate(pairwise(bounds))]
        found = [choice for choice in made if choice is not None]
        return found if len(found) == len(made) else None

    def within(self, seconds: float) -> list[int] | None:
        """Boundaries where no crew takes longer; every crew has some work."""
        bounds = [0]
        for place in range(len(self.kinds)):
            later = len(self.kinds) - 1 - place
            last = self.furthest(place, bounds[-1], self.calls - later, seconds)
            if last is None:
                return None
            bounds.append(last)
        return bounds if bounds[-1] == self.calls else None

    def furthest(self, place: int, first: int, limit: int, seconds: float) -> int | None:
        """The most calls that a crew takes from `first` on."""

        def works(last: int) -> bool:
            choice = self.choice(place, first, last)
            return choice is not None and choice.seconds <= seconds

        return _last(works, first + 1, limit)

    def refined(self, bounds: list[int], cost: Callable[[list[int]], float]) -> list[int]:
        """The boundaries moved a call at a time, as long as that costs less."""
        best, least = bounds, cost(bounds)
        moved = True
        while moved:
            moved = False
            for i in range(1, len(best) - 1):
                for step in (-1, 1):
                    other = [*best[:i], best[i] + step, *best[i + 1 :]]
                    if not best[i - 1] < other[i] < best[i + 1]:
                        continue
                    found = cost(other)
                    if found < least * (1 - CLOSE):
                        best, least, moved = other, found, True
        return best


def _last(works: Callable[[int], bool], low: int, high: int) -> int | None:
    """The last number from `low` to `high` that works, where all before one that works do, but for
    the first few: a crew of no more than calls without work has none to do."""
    start = next((n for n in range(low, high + 1) if works(n)), None)
    if start is None:
        return None
    low = start
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low
