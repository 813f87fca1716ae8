"""A group of ranks and the few collectives everything else is made of."""

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
    """Ranks that talk to each other; in a group of one nothing is sent.

    `sent` counts bytes that a rank puts on the wire by kind, for ring algorithms.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        rank: int,
        handle: dist.ProcessGroup | None,
        sent: Counter[str],
    ) -> None:
        self.name, self.ranks, self.rank, self.handle = name, tuple(ranks), rank, handle
        self.sent = sent
        self.size, self.index = len(self.ranks), self.ranks.index(rank)
        # gloo's reduce-scatter moves as much as an all-reduce; an exchange and a local sum, half.
        self.exchanges = handle is not None and dist.get_backend(handle) == "gloo"

    def watched(self, kind: str, x: Tensor, share: float) -> AbstractContextManager[None]:
        self.sent[kind] += round(x.numel() * x.element_size() * share)
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

    def exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows of `x` in order to every rank, `sent` of them each, for those that come from it."""
        if self.size == 1:
            return x
        result = x.new_empty((sum(received), *x.shape[1:]))
        share = 1 - sent[self.index] / max(sum(sent), 1)
        with self.watched("all_to_all", x, share):
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
        """Piece i of `x` (`[ranks, …]`) goes to rank i; piece j of the result is from rank j."""
        if self.size == 1:
            return x
        result = x.new_empty(x.shape)
        with self.watched("all_to_all", x, (self.size - 1) / self.size):
            dist.all_to_all_single(result, x.contiguous(), group=self.handle)
        return result

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum over the ranks of `x` (`[ranks, …]`), of which rank i gets piece i."""
        if self.size == 1:
            return x[0]
        if self.exchanges:
            result = x.new_empty(x.shape)
            with self.watched("reduce_scatter", x, (self.size - 1) / self.size):
                dist.all_to_all_single(result, x.contiguous(), group=self.handle)
            return result.sum(0)
        piece = x.new_empty(x.shape[1:])
        with self.watched("reduce_scatter", x, (self.size - 1) / self.size):
            dist.reduce_scatter_tensor(piece.view(-1), x.contiguous().view(-1), group=self.handle)
        return piece

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """`x` of the rank at index `source`; others give a tensor of its shape, which is filled."""
        if self.size > 1:
            with self.watched("broadcast", x, float(self.index == source)):
                dist.broadcast(x, self.ranks[source], group=self.handle)
        return x


class Pool:
    """Process groups by the partition of all ranks they belong to, made once and used again.

    Every rank asks in the same order, and in a partition that has any group of two or more every
    rank makes one: so all have made the same number of groups, from which torch derives the names
    when only members synchronise. For the same reason groups are never given back one by one.
    """

    def __init__(self, rank: int, timeout: timedelta = TIMEOUT) -> None:
        self.rank, self.timeout, self.sent = rank, timeout, Counter[str]()
        self.made: dict[tuple[int, Partition], dist.ProcessGroup | None] = {}

    def group(self, name: str, partition: Partition, channel: int = 0) -> Group:
        """The group that this rank is in; groups on different `channel`s do not wait in line."""
        ranks = next(part for part in partition if self.rank in part)
        if all(len(part) < 2 for part in partition):
            return Group(name, ranks, self.rank, None, self.sent)
        key = (channel, partition)
        if key not in self.made:
            with watch(self.rank, f"making group {name} of {len(ranks)} ranks"):
                self.made[key] = dist.new_group(
                    list(ranks), timeout=self.timeout, use_local_synchronization=True
                )
        return Group(name, ranks, self.rank, self.made[key], self.sent)
