"""Ranks as threads of one process: groups for tests and simulations of small runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from .work import Levels

T = TypeVar("T")


class Room:
    """Where the ranks of one group leave tensors for each other."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, Barrier(size)
        self.left: list[Tensor] = [torch.empty(0)] * size


class Seat:
    """One rank's place in a group. `sent` counts bytes by kind, as `runtime.group.Group` does."""

    def __init__(self, room: Room, index: int) -> None:
        self.room, self.index, self.size = room, index, room.size
        self.sent: Counter[str] = Counter()

    def everyone(self, x: Tensor) -> list[Tensor]:
        self.room.left[self.index] = x
        self.room.barrier.wait()
        found = list(self.room.left)
        self.room.barrier.wait()
        return found

    def all_reduce(self, x: Tensor) -> Tensor:
        self.sent["all_reduce"] += 2 * x.nbytes * (self.size - 1) // self.size
        return torch.stack(self.everyone(x)).sum(0)

    def all_gather(self, x: Tensor) -> Tensor:
        self.sent["all_gather"] += x.nbytes * (self.size - 1)
        return torch.stack(self.everyone(x))

    def all_to_all(self, x: Tensor) -> Tensor:
        self.sent["all_to_all"] += x.nbytes * (self.size - 1) // self.size
        return torch.stack([other[self.index] for other in self.everyone(x)])


def run_ranks(work: Callable[[Levels], T], inner: int = 1, outer: int = 1) -> list[T]:
    """`work` on every rank of `outer` nodes of `inner`, and what each gave."""
    whole = Room(inner * outer)
    nodes, peers = [Room(inner) for _ in range(outer)], [Room(outer) for _ in range(inner)]
    levels = [
        Levels(
            Seat(whole, rank),
            Seat(nodes[rank // inner], rank % inner),
            Seat(peers[rank % inner], rank // inner),
        )
        for rank in range(inner * outer)
    ]
    rooms = [whole, *nodes, *peers]

    def guarded(mine: Levels) -> T:
        try:
            return work(mine)
        except BaseException:
            for room in rooms:
                room.barrier.abort()
            raise

    with ThreadPoolExecutor(len(levels)) as pool:
        futures = [pool.submit(guarded, mine) for mine in levels]
        broken = [f.exception() for f in futures if f.exception() is not None]
        for error in sorted(broken, key=lambda e: "Broken" in type(e).__name__):
            assert error is not None
            raise error
        return [future.result() for future in futures]
