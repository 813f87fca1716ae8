"""Errors of communication that name the rank that is missing, and what the others waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakSet

import torch.distributed as dist

from ...ir.errors import PlaitError
from .flight_recorder import FlightRecorder, RankState, Record
from .monitor import Monitor, Store, wake

TIMEOUT_SECONDS = 60.0
WORKING_SECONDS = 1800.0
# of the time until all ranks have ended; the rest is for finding out why
SHARE_OF_COLLECTIVE = 2 / 3


class WatchOptions(NamedTuple):
    """A missing or stopped rank ends all others within `timeout_seconds`; each rank that can then
    writes its last collectives to `dump_folder` (`plait inspect` reads them). One that gives signs of
    life may work outside collectives for `working_seconds`."""

    timeout_seconds: float = TIMEOUT_SECONDS
    dump_folder: Path | None = None
    working_seconds: float = WORKING_SECONDS

    @property
    def collective_seconds(self) -> float:
        """How long a collective waits for ranks that give no signs of life, or wait in a circle."""
        return self.timeout_seconds * SHARE_OF_COLLECTIVE


PATIENT = WatchOptions(timeout_seconds=800)  # where ranks may work alone for minutes


class CommunicationError(PlaitError):
    """A collective failed or ran out of time: the message names the missing rank and where it was."""

    exit_code = 1


class Abandonable(Protocol):
    """A message on its way that may be forgotten."""

    def abandon(self) -> None: ...


class Watchdog:
    """Records this rank's collectives, and turns their failures into errors that say why.

    Ranks that share a `store` know of each other; without one, a failure names this rank alone.
    """

    def __init__(
        self, rank: int, options: WatchOptions | None = None, store: Store | None = None
    ) -> None:
        self.rank, self.recorder = rank, FlightRecorder(rank)
        self.options, self.monitor = options or WatchOptions(), None
        self.transfers = WeakSet[Abandonable]()
        if store is not None and dist.get_world_size() > 1:
            seconds, folder = self.options.collective_seconds, self.options.dump_folder
            self.monitor = Monitor(self.recorder, store, dist.get_world_size(), seconds, folder)

    @property
    def backend_seconds(self) -> float:
        """After which a collective fails by itself: late where a monitor looks after ranks."""
        monitored = self.monitor is not None
        return self.options.working_seconds if monitored else self.options.collective_seconds

    @contextmanager
    def watch(self, what: str, channel: str = "", ranks: Sequence[int] = ()) -> Iterator[None]:
        """Record a collective that begins and ends inside; raises CommunicationError where
        torch.distributed fails."""
        record = self.recorder.begin(what, channel, ranks)
        with self.inside(record):
            yield
        self.recorder.finish(record)

    @contextmanager
    def inside(self, record: Record) -> Iterator[None]:
        """This rank begins a recorded collective inside, or waits for it; raises as `watch` does."""
        start = time.monotonic()
        self.recorder.enter(record)
        try:
            yield
        except PlaitError:
            self.recorder.finish(record)  # it is not the communication that failed
            raise
        except (RuntimeError, dist.DistError) as error:
            seconds = time.monotonic() - start
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise CommunicationError(
                f"rank {self.rank}: {record.what} failed after {seconds:.1f} s: {self.why()} "
                f"({reason[:200]})"
            ) from error
        self.recorder.leave(record)

    def why(self) -> str:
        if self.monitor is None:
            return "another rank has probably stopped"
        folder = self.options.dump_folder
        more = f"; `plait inspect {folder}` says who waited for whom" if folder else ""
        verdict = self.monitor.explain()
        wake(self.monitor.stopped)
        return verdict + more

    def states(self) -> list[RankState]:
        """What every rank has said last of itself."""
        if self.monitor is None:
            return [self.recorder.state()]
        return [state for _, state in sorted(self.monitor.read().items())]
