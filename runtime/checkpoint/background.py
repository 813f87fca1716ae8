"""Work that goes on beside training: a checkpoint on its way to the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWork:
    """Runs `work` in a thread; `wait` raises its error."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="plait-checkpoint")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.error = error

    def wait(self) -> None:
        """Wait until the work is done; raises the error that ended it, once."""
        self.thread.join()
        error, self.error = self.error, None
        if error is not None:
            raise error
