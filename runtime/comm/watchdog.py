"""Errors of communication that name the rank and the collective that failed or hung."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from ...ir.errors import PlaitError

TIMEOUT = timedelta(minutes=10)


class CommunicationError(PlaitError):
    """A collective failed or ran out of time: the message names the rank, collective and size."""

    exit_code = 1


@contextmanager
def watch(rank: int, what: str) -> Iterator[None]:
    """Turn a failure of torch.distributed inside into a CommunicationError that says where."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        seconds = time.monotonic() - start
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise CommunicationError(
            f"rank {rank}: {what} failed after {seconds:.1f} s: {reason[:300]}; another rank has "
            f"probably stopped: look for the first error among the ranks' outputs"
        ) from error
