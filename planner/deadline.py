"""Time limit of a search, which a user may also interrupt."""

from __future__ import annotations

import time


class Deadline:
    """A limit in seconds from now; None for no limit.

    A search calls `passed` between its steps and returns its best result once that is True.
    """

    def __init__(self, limit_seconds: float | None = None) -> None:
        self.start, self.limit_seconds = time.monotonic(), limit_seconds
        self.stopped = False

    def passed(self) -> bool:
        """Whether time is up or the search was stopped."""
        limit = self.limit_seconds
        if limit is not None and time.monotonic() - self.start > limit:
            self.stopped = True
        return self.stopped

    def stop(self) -> None:
        """Stop the search at its next step."""
        self.stopped = True
