"""Ranks as threads of one process: groups for tests and simulations of small runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from ..comm.group_hierarchy import GroupHierarchy
from ..comm.transfer import Arrived, Arriving

T = TypeVar("T")


class SharedSlots:
    """Shared memory of the ranks of one group: one tensor per rank, and a barrier."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, Barrier(size)
        self.pairs = {(a, b): Queue[Tensor]() for a in range(size) for b in range(size)}
        self.tensors: list[Tensor] = [torch.empty(0)] * size


class ThreadGroup:
    """One rank's view of a group of threads. `sent` counts bytes by kind, as `Group.sent_bytes` does."""

    def __init__(self, slots: SharedSlots, index: int) -> None:
        self.slots, self.index, self.size = slots, index, slots.size
        self.sent: Counter[str] = Counter()

    def gather_list(self, x: Tensor) -> list[Tensor]:
        self.slots.tensors[self.index] = x
        self.slots.barrier.wait()
        tensors = list(self.slots.tensors)
        self.slots.barrier.wait()
        return tensors

    def all_reduce(self, x: Tensor) -> Tensor:
        self.sent["all_reduce"] += 2 * x.nbytes * (self.size - 1) // self.size
        return torch.stack(self.gather_list(x)).sum(0)

    def start_all_reduce(self, x: Tensor) -> Arriving:
        return Arrived(self.all_reduce(x))

    def all_gather(self, x: Tensor) -> Tensor:
        self.sent["all_gather"] += x.nbytes * (self.size - 1)
        return torch.stack(self.gather_list(x))

    def all_to_all(self, x: Tensor) -> Tensor:
        self.sent["all_to_all"] += x.nbytes * (self.size - 1) // self.size
        return torch.stack([other[self.index] for other in self.gather_list(x)])

    def exchange_among(self, members: Sequence[int], rows: Tensor) -> Tensor:
        for number, other in enumerate(members):
            self.slots.pairs[self.index, other].put(rows[number].clone())
        self.sent["all_to_all"] += rows.nbytes * (len(members) - 1) // len(members)
        return torch.stack([self.slots.pairs[other, self.index].get() for other in members])

    def exchange_rows(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        self.sent["all_to_all"] += x.nbytes - x.split(sent)[self.index].nbytes
        counts, rows = self.gather_list(torch.tensor(sent)), self.gather_list(x)
        arrived = [row.split(n.tolist())[self.index] for row, n in zip(rows, counts, strict=True)]
        assert [len(row) for row in arrived] == received
        return torch.cat(arrived)


def run_ranks(work: Callable[[GroupHierarchy], T], inner: int = 1, outer: int = 1) -> list[T]:
    """Run `work` on every rank of `outer` nodes of `inner` ranks; gives their results."""
    everyone = SharedSlots(inner * outer)
    nodes, peers = (
        [SharedSlots(inner) for _ in range(outer)],
        [SharedSlots(outer) for _ in range(inner)],
    )
    levels = [
        GroupHierarchy(
            ThreadGroup(everyone, rank),
            ThreadGroup(nodes[rank // inner], rank % inner),
            ThreadGroup(peers[rank % inner], rank // inner),
        )
        for rank in range(inner * outer)
    ]
    all_slots = [everyone, *nodes, *peers]

    def guarded(mine: GroupHierarchy) -> T:
        try:
            return work(mine)
        except BaseException:
            for slots in all_slots:
                slots.barrier.abort()
            raise

    with ThreadPoolExecutor(len(levels)) as pool:
        futures = [pool.submit(guarded, mine) for mine in levels]
        broken = [f.exception() for f in futures if f.exception() is not None]
        for error in sorted(broken, key=lambda e: "Broken" in type(e).__name__):
            assert error is not None
            raise error
        return [future.result() for future in futures]
