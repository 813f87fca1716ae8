"""Time limit of a search, which a user may interrupt and watch; the planner's only reader of a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

Clock = Callable[[], float]  # seconds since any fixed point
monotonic: Clock = time.monotonic
# Is told the best answer so far, and the least that any answer can be, whenever one of them changes.
Watch = Callable[[float, float], None]


def unwatched(best: float, least: float) -> None:
    """Nobody looks on."""


def without_bound(watch: Watch) -> Watch:
    """Tells of a search over some devices, whose bound says nothing about others."""

    def tell(best: float, _: float) -> None:
        watch(best, 0.0)

    return tell


class Deadline:
    """A limit in seconds from `start` (default: now); None for no limit.

    A search calls `passed` between its steps and returns its best result once that is True. Tests
    inject a `clock` that counts how often it is read.
    """

    def __init__(
        self,
        limit_seconds: float | None = None,
        clock: Clock = monotonic,
        start: float | None = None,
    ) -> None:
        self.limit_seconds, self.clock = limit_seconds, clock
        self.start = clock() if start is None else start
        self.stopped = False

    @property
    def seconds_left(self) -> float:
        """Seconds until the limit, at least 0; infinite without a limit."""
        if self.limit_seconds is None:
            return inf
        return max(0.0, self.limit_seconds - (self.clock() - self.start))

    def passed(self) -> bool:
        """Whether time is up or the search was stopped."""
        if self.limit_seconds is not None and self.clock() - self.start >= self.limit_seconds:
            self.stopped = True
        return self.stopped

    def stop(self) -> None:
        """Stop the search at its next step."""
        self.stopped = True

    def limited(self, limit_seconds: float | None) -> Deadline:
        """Another limit, counted from the same start on the same clock."""
        return Deadline(limit_seconds, self.clock, self.start)
