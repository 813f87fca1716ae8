"""When a search has to end: its time is up, or somebody stopped it."""

from __future__ import annotations

import time


class Clock:
    """Seconds of a search; `limit_seconds` is None for as long as it takes.

    A search asks `late` between its steps, and ends with the best that it has found so far.
    """

    def __init__(self, limit_seconds: float | None = None) -> None:
        self.start, self.limit_seconds = time.monotonic(), limit_seconds
        self.stopped = False

    def late(self) -> bool:
        limit = self.limit_seconds
        if limit is not None and time.monotonic() - self.start > limit:
            self.stopped = True
        return self.stopped

    def stop(self) -> None:
        """End at the next step."""
        self.stopped = True
