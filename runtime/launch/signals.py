"""SIGTERM as a wish to stop: the step in hand ends, a checkpoint may be written, and time is limited."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_SECONDS = 8.0  # torchrun is given a second more before it kills
log = logging.getLogger("plait")


@contextmanager
def stop_on_sigterm(
    ask: Callable[[], None], grace_seconds: float = GRACE_SECONDS
) -> Iterator[None]:
    """Inside, SIGTERM calls `ask`, and ends the process `grace_seconds` later wherever it is then.

    The main thread may be in a collective, where Python runs no handler: a thread that the signal wakes
    up keeps the time. Only in the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_handler = signal.signal(signal.SIGTERM, lambda *_: ask())
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    done = threading.Event()
    thread = threading.Thread(target=_keep_time, args=(reader, done, grace_seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(old_writer)
        signal.signal(signal.SIGTERM, old_handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _keep_time(reader: int, done: threading.Event, grace_seconds: float) -> None:
    """Wait for SIGTERM; from then on the process has `grace_seconds`."""
    while number := os.read(reader, 1):
        if number[0] == signal.SIGTERM:
            break
    if number and not done.wait(grace_seconds):
        log.critical("not done %.0f s after SIGTERM: this rank ends now", grace_seconds)
        os._exit(128 + signal.SIGTERM)
