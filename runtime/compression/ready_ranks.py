"""Which ranks average their weights after a step: the first that are ready, or groups that a seed draws.

    rank 0 ──step──┐             ┌─step─┐
    rank 1 ──step──┴─ group 0 ───┴──────┴─ group 2
    rank 2 ────step────┐              ┌────step
    rank 3 ──────step──┴─ group 1 ────┴──────step

Ready ranks queue in the store of the run; whoever completes a group takes it out of the queue and tells
its members. A rank that is the last to train would wait forever: after a few of its steps it goes on
with those that wait too. Source: Miao et al., heterogeneity-aware distributed training via partial
reduce, SIGMOD 2021.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from ..comm.monitor import Store

Members = tuple[int, ...]
STEPS_OF_PATIENCE = 4  # of a rank's longest step so far
LEAST_PATIENCE_SECONDS = 0.5
POLL_SECONDS = 0.001


class Queue(msgspec.Struct, frozen=True):
    """Ready ranks in the order in which they came, with how often each had come; the last groups, of
    which there are as many as ranks; how often any rank has come."""

    waiting: tuple[tuple[int, int], ...] = ()
    recent: tuple[Members, ...] = ()
    arrivals: int = 0


def first_ready(
    waiting: Sequence[int], recent: Sequence[Members], size: int, ranks: int
) -> Members:
    """The next group of `size`: the first that wait, unless the last groups fall apart into ranks that
    never met; then one of another part replaces the last of them. Empty where it has to wait."""
    if len(waiting) < min(size, ranks):
        return ()
    first = tuple(waiting[:size])
    part = connected([*recent, first], first[0])
    if len(recent) < ranks or len(part) == ranks:
        return first
    home = connected(recent, first[0])
    if not home.issuperset(first):
        return first  # it joins two parts
    others = [rank for rank in waiting if rank not in home]
    return (*first[: size - 1], others[0]) if others else ()


def connected(groups: Sequence[Members], rank: int) -> set[int]:
    """The ranks that a rank has met, directly or through others."""
    part, before = {rank}, 0
    while len(part) > before:
        before = len(part)
        part.update(*(group for group in groups if not part.isdisjoint(group)))
    return part


class SeededRanks:
    """Groups drawn from a seed, all ranks once a step: the same in every run."""

    def __init__(self, seed: int, size: int, ranks: int, rank: int) -> None:
        self.seed, self.size, self.ranks, self.rank = seed, size, ranks, rank

    def members(self, step: int) -> Members:
        """The group of this rank, in the order of ranks; the last of a step may be smaller."""
        order = list(range(self.ranks))
        Random(f"{self.seed} {step}").shuffle(order)
        first = order.index(self.rank) // self.size * self.size
        return tuple(sorted(order[first : first + self.size]))


class ReadyRanks:
    """Groups of the first `size` of `ranks` that are ready; all ranks of `name` share a `store`."""

    def __init__(self, store: Store, name: str, size: int, ranks: int, rank: int) -> None:
        self.store, self.name, self.size, self.ranks, self.rank = store, name, size, ranks, rank
        self.came, self.longest, self.last = 0, 0.0, time.monotonic()
        store.set(self.key(rank), "")

    def key(self, rank: int) -> str:
        return f"{self.name}/{rank}"

    def members(self, step: int) -> Members:
        """Wait for the group of this rank, in the order of ranks."""
        start = time.monotonic()
        if self.came:
            self.longest = max(self.longest, start - self.last)
        self.came += 1
        patience = max(STEPS_OF_PATIENCE * self.longest, LEAST_PATIENCE_SECONDS)
        group = self.change(self.joined)
        while self.rank not in group:
            told, _, members = self.store.get(self.key(self.rank)).decode().partition(":")
            if told == str(self.came):
                group = tuple(map(int, members.split(",")))
                break
            if time.monotonic() - start > patience:
                group = self.change(self.closed)
                continue
            time.sleep(POLL_SECONDS)
        self.last = time.monotonic()
        return tuple(sorted(group))

    @property
    def arrivals(self) -> int:
        """Steps of all ranks so far."""
        return self.queue().arrivals

    def queue(self) -> Queue:
        text = self.store.compare_set(f"{self.name}/queue", "", encoded(Queue()))
        return msgspec.json.decode(text, type=Queue)

    def joined(self, queue: Queue) -> tuple[Queue, Members]:
        """The queue with this rank, without the group that this completes."""
        waiting = (*queue.waiting, (self.rank, self.came))
        group = first_ready([rank for rank, _ in waiting], queue.recent, self.size, self.ranks)
        arrived = Queue(waiting, queue.recent, queue.arrivals + 1)
        return self.without(arrived, group), group

    def closed(self, queue: Queue) -> tuple[Queue, Members]:
        """The queue without this rank and those that wait with it, if it still waits."""
        if (self.rank, self.came) not in queue.waiting:
            return queue, ()
        others = [rank for rank, _ in queue.waiting if rank != self.rank]
        group = (self.rank, *others[: self.size - 1])
        return self.without(queue, group), group

    def without(self, queue: Queue, group: Members) -> Queue:
        if not group:
            return queue
        waiting = tuple(one for one in queue.waiting if one[0] not in group)
        return Queue(waiting, (*queue.recent, group)[-self.ranks :], queue.arrivals)

    def change(self, change: Callable[[Queue], tuple[Queue, Members]]) -> Members:
        """Replace the queue at once, and tell the members of a group that leaves it."""
        before = self.queue()
        while True:
            after, group = change(before)
            text = encoded(after)
            there = self.store.compare_set(f"{self.name}/queue", encoded(before), text)
            if there.decode() == text:
                break
            before = msgspec.json.decode(there, type=Queue)
        came = dict((*before.waiting, (self.rank, self.came)))
        for rank in group:
            if rank != self.rank:
                members = ",".join(map(str, group))
                self.store.set(self.key(rank), f"{came[rank]}:{members}")
        return group


def encoded(queue: Queue) -> str:
    return msgspec.json.encode(queue).decode()
