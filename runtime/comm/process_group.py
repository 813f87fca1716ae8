"""A process group with the basic collectives, and a pool of groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .watchdog import TIMEOUT, watch

Partition = tuple[tuple[int, ...], ...]


class Group:
    """Collectives of a group of ranks; in a group of one nothing is sent.

    `sent_bytes` counts bytes that a rank sends by kind of collective, for ring algorithms.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        rank: int,
        handle: dist.ProcessGroup | None,
        sent_bytes: Counter[str],
    ) -> None:
        self.name, self.ranks, self.rank, self.handle = name, tuple(ranks), rank, handle
        self.sent_bytes = sent_bytes
        self.size, self.index = len(self.ranks), self.ranks.index(rank)
        # gloo's reduce-scatter sends as much as an all-reduce; an all-to-all and a local sum, half.
        self.adds_locally = handle is not None and dist.get_backend(handle) == "gloo"

    def watched(self, kind: str, x: Tensor, fraction: float) -> AbstractContextManager[None]:
        """Count `fraction` of the bytes of `x` as sent; report failures inside with group and shape."""
        self.sent_bytes[kind] += round(x.numel() * x.element_size() * fraction)
        return watch(self.rank, f"{kind} over {self.name} of {tuple(x.shape)} {x.dtype}")

    def all_reduce(self, x: Tensor, largest: bool = False) -> Tensor:
        """Sum over the ranks, or the largest, in a new tensor."""
        if self.size == 1:
            return x
        kind = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        result = x.clone(memory_format=torch.contiguous_format)
        with self.watched("all_reduce", x, 2 * (self.size - 1) / self.size):
            dist.all_reduce(result, kind, group=self.handle)
        return result

    def exchange_rows(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """All-to-all of rows: `sent[i]` rows of `x`, in order, to rank i, `received[i]` from it."""
        if self.size == 1:
            return x
        result = x.new_empty((sum(received), *x.shape[1:]))
        fraction = 1 - sent[self.index] / max(sum(sent), 1)
        with self.watched("all_to_all", x, fraction):
            dist.all_to_all_single(result, x.contiguous(), received, sent, group=self.handle)
        return result

    def all_gather(self, x: Tensor) -> Tensor:
        """`[ranks, *x.shape]` from every rank's `x`."""
        if self.size == 1:
            return x[None]
        result = x.new_empty((self.size, *x.shape))
        with self.watched("all_gather", x, self.size - 1):
            dist.all_gather_into_tensor(result.view(-1), x.contiguous().view(-1), group=self.handle)
        return result

    def all_to_all(self, x: Tensor) -> Tensor:
        """Row i of `x` (`[ranks, …]`) goes to rank i; row j of the result is from rank j."""
        if self.size == 1:
            return x
        result = x.new_empty(x.shape)
        with self.watched("all_to_all", x, (self.size - 1) / self.size):
            dist.all_to_all_single(result, x.contiguous(), group=self.handle)
        return result

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum over the ranks of `x` (`[ranks, …]`), of which rank i gets row i."""
        if self.size == 1:
            return x[0]
        if self.adds_locally:
            result = x.new_empty(x.shape)
            with self.watched("reduce_scatter", x, (self.size - 1) / self.size):
                dist.all_to_all_single(result, x.contiguous(), group=self.handle)
            return result.sum(0)
        shard = x.new_empty(x.shape[1:])
        with self.watched("reduce_scatter", x, (self.size - 1) / self.size):
            dist.reduce_scatter_tensor(shard.view(-1), x.contiguous().view(-1), group=self.handle)
        return shard

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """`x` of the rank at index `source`; others give a tensor of its shape, which is filled."""
        if self.size > 1:
            with self.watched("broadcast", x, float(self.index == source)):
                dist.broadcast(x, self.ranks[source], group=self.handle)
        return x


class GroupPool:
    """Process groups by the partition of all ranks that they belong to; each is created once.

    Every rank asks in the same order, and in a partition with any group of two or more every rank
    creates one. So all ranks have created equally many groups, from which torch derives their names when
    only members synchronise. For the same reason groups are never destroyed one by one.
    """

    def __init__(self, rank: int, timeout: timedelta = TIMEOUT) -> None:
        self.rank, self.timeout, self.sent_bytes = rank, timeout, Counter[str]()
        self.handles: dict[tuple[int, Partition], dist.ProcessGroup | None] = {}

    def group(self, name: str, partition: Partition, channel: int = 0) -> Group:
        """The group that this rank is in; groups on different `channel`s run concurrently."""
        ranks = next(part for part in partition if self.rank in part)
        if all(len(part) < 2 for part in partition):
            return Group(name, ranks, self.rank, None, self.sent_bytes)
        key = (channel, partition)
        if key not in self.handles:
            with watch(self.rank, f"making group {name} of {len(ranks)} ranks"):
                handle = dist.new_group(
                    list(ranks), timeout=self.timeout, use_local_synchronization=True
                )
            assert isinstance(handle, dist.ProcessGroup)  # this rank is a member
            self.handles[key] = handle
        return Group(name, ranks, self.rank, self.handles[key], self.sent_bytes)
