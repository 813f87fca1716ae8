"""Signs of life of all ranks in the store: each posts where it is, and reads the others' on failure."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from ...ir.files.whole_file import write_whole
from .diagnosis import diagnose
from .flight_recorder import FlightRecorder, RankState, Record

BEAT_SECONDS = 1.0
RANKS_PER_SECOND = 500  # signs of life that a store takes in without noticing
LOOKED_AFTER = 4  # ranks that each rank looks after in a collective
LONG_SECONDS = 2.0  # a collective after which it looks after them
HOPELESS_LOOKS = 3  # in a row: states of ranks are not of one instant
SILENT_BEATS = 3  # without a sign of life, a rank is silent
GRACE_SECONDS = 5.0  # after a verdict a rank must have failed by itself
log = logging.getLogger("plait")


class Store(Protocol):
    """What is needed of torch's stores."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, value: str, /) -> bytes: ...
    def clone(self) -> Store: ...


class Dump(msgspec.Struct, frozen=True):
    """What one rank leaves when a run fails: itself, its last collectives, what it knew of others."""

    state: RankState
    verdict: str
    records: tuple[Record, ...]
    others: tuple[RankState, ...] = ()


def write_dump(folder: Path, dump: Dump) -> Path:
    """Write one rank's dump into a folder; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank_{dump.state.rank:05d}.json"
    write_whole(path, msgspec.json.encode(dump))
    return path


class Monitor:
    """Posts this rank's state and says what happened when a collective fails.

    A rank is gone after `timeout_seconds` without a sign of life; so long must a collective take
    before this rank asks whether others wait for each other. One that works and lives is waited for.
    Dumps go to `dump_folder`, if there is one.
    """

    def __init__(
        self,
        recorder: FlightRecorder,
        store: Store,
        world: int,
        timeout_seconds: float,
        dump_folder: Path | None,
    ) -> None:
        self.recorder, self.world, self.dump_folder = recorder, world, dump_folder
        self.timeout_seconds = timeout_seconds
        self.period_seconds = max(BEAT_SECONDS, world / RANKS_PER_SECOND)
        rank = recorder.rank
        self.prefix = f"plait/{store.add(f'plait/monitors/{rank}', 1)}"
        self.store, self.thread_store = store.clone(), store.clone()
        self.lock, self.dumped, self.raised, self.verdict_time = threading.Lock(), False, False, 0.0
        self.heard: dict[int, tuple[int, float]] = {}  # by rank: its last beat, and when that came
        self.hopeless_looks = 0
        self.stopped: list[RankState] = []  # ranks that this one found to give no signs of life
        stop = threading.Event()
        self.thread = threading.Thread(
            target=_run, args=(weakref.ref(self), stop, self.period_seconds), daemon=True
        )
        self.close = weakref.finalize(
            self, _end, self.store, self.key(rank), recorder, self.thread, stop
        )
        self.thread.start()

    def key(self, rank: int) -> str:
        return f"{self.prefix}/rank/{rank}"

    def beat(self) -> None:
        """Give a sign of life, and follow a verdict of others; called by the thread."""
        self.thread_store.set(self.key(self.recorder.rank), _text(self.recorder.state()))
        verdict = _value(self.thread_store, f"{self.prefix}/verdict")
        now = time.time()
        if verdict and not self.verdict_time:
            self.verdict_time = now
            self.dump(verdict)
        late = bool(self.verdict_time) and now - self.verdict_time > GRACE_SECONDS
        if not self.raised and (late or self.overdue(now)):
            log.critical("%s", self.final_message(now))
            wake(self.stopped)
            os._exit(1)  # the backend neither ended nor failed

    def final_message(self, now: float) -> str:
        """What this rank waited for, and the verdict."""
        running = next(iter(self.recorder.running.copy().values()), None)
        waited = f"{running} has waited {now - running.start:.0f} s: " if running else ""
        return f"rank {self.recorder.rank}: {waited}{self.explain()}"

    def overdue(self, now: float) -> bool:
        """Whether a collective waits for a rank that is gone, or for what never comes."""
        running = [r for r in self.recorder.running.copy().values() if now - r.start > LONG_SECONDS]
        gone = self.gone(running, now)
        if any(gone & {*record.ranks} for record in running):
            return True
        late = any(now - record.start > self.timeout_seconds for record in running)
        hopeless = late and diagnose(self.read(self.thread_store), (), now).hopeless
        self.hopeless_looks = self.hopeless_looks + 1 if hopeless else 0
        return self.hopeless_looks >= HOPELESS_LOOKS

    def gone(self, running: Iterable[Record], now: float) -> set[int]:
        """Ranks without a sign of life for too long, out of those that this one looks after: the next
        ones of its collectives."""
        ranks = {rank for record in running for rank in after(self.recorder.rank, record.ranks)}
        self.heard = {rank: beat for rank, beat in self.heard.items() if rank in ranks}
        states = self.read(self.thread_store, ranks)
        for rank in ranks:
            beat = states[rank].beat if rank in states else 0
            if rank not in self.heard or self.heard[rank][0] != beat:
                self.heard[rank] = beat, now
        return {rank for rank, (_, at) in self.heard.items() if now - at > self.timeout_seconds}

    def read(
        self, store: Store | None = None, ranks: Collection[int] | None = None
    ) -> dict[int, RankState]:
        """What the ranks, or some of them, have said last, by rank."""
        source = self.store if store is None else store
        return {
            rank: msgspec.json.decode(text, type=RankState)
            for rank in (range(self.world) if ranks is None else sorted(ranks))
            if (text := _value(source, self.key(rank)))
        }

    def explain(self) -> str:
        """Which rank is missing and where it was: one text for all ranks. Takes some seconds."""
        self.raised = True
        try:
            self.store.set(self.key(self.recorder.rank), _text(self.recorder.state()))
            verdict = _value(self.store, f"{self.prefix}/verdict") or self.decide()
        except RuntimeError as error:
            verdict = f"the store of the ranks is gone, so its process is missing ({_line(error)})"
        self.dump(verdict)
        time.sleep(self.period_seconds)  # so that the others have dumped when the first one ends
        return verdict

    def decide(self) -> str:
        """The verdict on the states now; the first rank's counts."""
        before = self.read()
        time.sleep(SILENT_BEATS * self.period_seconds)
        after = self.read()
        silent = {r for r, state in before.items() if after[r].beat == state.beat}
        silent -= {self.recorder.rank}
        silent |= set(range(self.world)) - after.keys()
        text = diagnose(after, silent, time.time()).text
        verdict = self.store.compare_set(f"{self.prefix}/verdict", "", text).decode()
        self.stopped = [after[rank] for rank in silent & after.keys()]
        return verdict

    def dump(self, verdict: str) -> None:
        """Write this rank's dump, once."""
        with self.lock:
            if self.dumped or self.dump_folder is None:
                return
            self.dumped = True
        others = self.read()
        state = self.recorder.state()
        dump = Dump(state, verdict, tuple(self.recorder.records), tuple(others.values()))
        with suppress(OSError):  # the verdict matters more
            write_dump(self.dump_folder, dump)


def after(rank: int, ranks: Sequence[int]) -> list[int]:
    """The ranks of a collective that one of them looks after."""
    place = ranks.index(rank) if rank in ranks else len(ranks)
    return [*ranks[place + 1 :], *ranks[:place]][:LOOKED_AFTER]


def wake(states: Iterable[RankState]) -> None:
    """Let ranks of this machine that are stopped go on, so that they end as all others do; whoever
    started them waits for them."""
    for state in states:
        if state.host == socket.gethostname() and state.process:
            with suppress(OSError):
                os.kill(state.process, signal.SIGCONT)


def _run(monitor: weakref.ref[Monitor], stop: threading.Event, period_seconds: float) -> None:
    while True:
        living = monitor()
        if living is None:
            return
        try:
            living.beat()
        except RuntimeError:  # the store has ended: so has the run
            return
        del living
        if stop.wait(period_seconds):
            return


def _end(
    store: Store,
    key: str,
    recorder: FlightRecorder,
    thread: threading.Thread,
    stop: threading.Event,
) -> None:
    """Stop the thread before the interpreter ends, and say that this rank has ended."""
    stop.set()
    if thread is not threading.current_thread():
        thread.join(timeout=5)
    error = getattr(sys, "last_value", None)
    recorder.end = (
        "its script is done" if error is None else f"{type(error).__name__}: {_line(error)}"
    )
    with suppress(RuntimeError):
        store.set(key, _text(recorder.state()))


def _text(state: RankState) -> str:
    return msgspec.json.encode(state).decode()


def _value(store: Store, key: str) -> str:
    """The text of a key; empty where there is none yet."""
    return store.get(key).decode() if store.check([key]) else ""


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
