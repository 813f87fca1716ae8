"""What a rank is doing: its step, its collectives with their numbers, and the last 1,000 of them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

CAPACITY = 1000
STEPS = 20  # over which step times are averaged


class Record(msgspec.Struct):
    """One collective or transfer of a rank.

    `sequence` numbers those of its channel, which all its `ranks` begin in the same order. Times are
    seconds of the epoch: `start` is when the rank was last in it, to begin it or to wait for it; `end`
    is 0 while it lasts, and for one that failed.
    """

    number: int
    step: int
    what: str
    channel: str
    ranks: tuple[int, ...]
    sequence: int
    start: float
    end: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} (collective {self.number})"


class RankState(msgspec.Struct, frozen=True):
    """What a rank says of itself: where it is, and how many collectives of each channel it has begun.

    `beat` counts signs of life. `running` are the collectives that it is in, `last` the one that it
    began last. `end` says how its script ended. Seconds are means of recent steps: of a whole step, and
    of what a rank did itself in it, outside collectives.
    """

    rank: int
    beat: int
    time: float
    step: int
    last: Record | None = None
    running: tuple[Record, ...] = ()
    counts: dict[str, int] = {}
    end: str = ""
    step_seconds: float = 0.0
    busy_seconds: float = 0.0
    host: str = ""
    process: int = 0


class FlightRecorder:
    """Collectives of this rank, in the order in which it began them."""

    def __init__(self, rank: int) -> None:
        self.rank, self.step, self.beats, self.end = rank, 0, 0, ""
        self.lock = threading.Lock()  # checkpoints are written beside training
        self.records: deque[Record] = deque(maxlen=CAPACITY)
        self.running: dict[int, Record] = {}
        self.counts: Counter[str] = Counter()
        self.number, self.waited_seconds, self.began = 0, 0.0, 0.0
        self.step_times: deque[tuple[float, float]] = deque(maxlen=STEPS)

    def begin(self, what: str, channel: str, ranks: Sequence[int]) -> Record:
        """Note that a collective begins, the next one of its channel; this rank is in it."""
        with self.lock:
            self.number += 1
            self.counts[channel] += 1
            sequence, now = self.counts[channel], time.time()
            record = Record(self.number, self.step, what, channel, tuple(ranks), sequence, now)
            self.records.append(record)
        self.running[record.number] = record
        return record

    def enter(self, record: Record) -> None:
        """Note that this rank waits for a collective."""
        record.start = time.time()
        self.running[record.number] = record

    def leave(self, record: Record) -> None:
        """Note that this rank goes on, beside a collective that lasts or after one that has ended."""
        if self.running.pop(record.number, None) is not None:
            self.waited_seconds += time.time() - record.start

    def finish(self, record: Record) -> None:
        """Note that a collective has ended well."""
        self.leave(record)
        record.end = time.time()

    def begin_step(self, step: int) -> None:
        """Note that a training step begins, and so how long the one before took."""
        now = time.time()
        if self.began:
            total = now - self.began
            self.step_times.append((total, max(total - self.waited_seconds, 0.0)))
        self.step, self.began, self.waited_seconds = step, now, 0.0

    def state(self) -> RankState:
        """This rank as others see it; a sign of life."""
        self.beats += 1
        count = max(len(self.step_times), 1)
        return RankState(
            self.rank,
            self.beats,
            time.time(),
            self.step,
            self.records[-1] if self.records else None,
            tuple(self.running.copy().values()),
            dict(self.counts),
            self.end,
            sum(total for total, _ in self.step_times) / count,
            sum(busy for _, busy in self.step_times) / count,
            socket.gethostname(),
            os.getpid(),
        )
