"""A process group with the basic collectives, and a pool of groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Work

from .monitor import Store
from .transfer import (
    Arrived,
    Post,
    Started,
    Transfer,
    TransferTensors,
    exchange_by_gloo,
    exchange_pairs,
    gather_segments,
)
from .watchdog import Watchdog, WatchOptions

Partition = tuple[tuple[int, ...], ...]
T = TypeVar("T")
STORAGE = timedelta(hours=6)


class Group:
    """Collectives of a group of ranks; in a group of one nothing is sent.

    `sent_bytes` counts bytes that a rank sends by kind of collective, for ring algorithms. `channel`
    names the group in the records of the `watchdog`, equally on all its ranks.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        watchdog: Watchdog,
        handle: dist.ProcessGroup | None,
        sent_bytes: Counter[str],
    ) -> None:
        self.name, self.ranks, self.handle = name, tuple(ranks), handle
        self.watchdog, self.rank, rank = watchdog, watchdog.rank, watchdog.rank
        self.channel = f"{name} {','.join(map(str, self.ranks))}"
        self.sent_bytes = sent_bytes
        self.size, self.index = len(self.ranks), self.ranks.index(rank)
        self.by_gloo = handle is not None and dist.get_backend(handle) == "gloo"

    def alone(self) -> Group:
        """The group of this rank alone."""
        return Group("this rank", (self.rank,), self.watchdog, None, self.sent_bytes)

    def watch(self, what: str) -> AbstractContextManager[None]:
        """Record a collective of all ranks of the group that happens inside."""
        return self.watchdog.watch(what, self.channel, self.ranks)

    # each is a start, and a call that waits for it

    def start_all_reduce(
        self, x: Tensor, largest: bool = False, *, in_place: bool = False
    ) -> Started:
        """Sum over the ranks, or the largest: in a new tensor, or in place of a contiguous one."""
        if self.size == 1:
            return Arrived(x)
        kind = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        result = x if in_place else x.clone(memory_format=torch.contiguous_format)
        return self.started(
            "all_reduce",
            TransferTensors(result, result),
            2 * (self.size - 1) / self.size,
            self.asynchronous(dist.all_reduce, result, kind),
        )

    def all_reduce(self, x: Tensor, largest: bool = False, *, in_place: bool = False) -> Tensor:
        return self.start_all_reduce(x, largest, in_place=in_place).wait()

    def start_all_gather(self, x: Tensor) -> Started:
        """`[ranks, *x.shape]` from every rank's `x`."""
        if self.size == 1:
            return Arrived(x[None])
        message = TransferTensors(x.contiguous(), x.new_empty((self.size, *x.shape)))
        rows, flat = message.filled.view(self.size, -1), message.sent.view(-1)
        if self.by_gloo:
            post = partial(gather_segments, rows, flat, self.handle)
        else:
            post = self.asynchronous(dist.all_gather_into_tensor, rows.view(-1), flat)
        return self.started("all_gather", message, self.size - 1, post)

    def all_gather(self, x: Tensor) -> Tensor:
        return self.start_all_gather(x).wait()

    def start_reduce_scatter(self, x: Tensor) -> Started:
        """Sum over the ranks of `x` (`[ranks, …]`), of which rank i gets row i."""
        if self.size == 1:
            return Arrived(x[0])
        sent, fraction = x.contiguous(), (self.size - 1) / self.size
        if self.by_gloo:
            rows = TransferTensors(sent, sent.new_empty((self.size - 1, *sent.shape[1:])))
            filled = list[Tensor | None](rows.filled)
            filled.insert(self.index, None)
            post = partial(exchange_by_gloo, filled, self.others_of(sent), self.handle)
            add = partial(total_of, sent[self.index], self.index)
            return self.started("reduce_scatter", rows, fraction, post).then(add)
        message = TransferTensors(sent, sent.new_empty(sent.shape[1:]))
        post = self.asynchronous(dist.reduce_scatter_tensor, message.filled.view(-1), sent.view(-1))
        return self.started("reduce_scatter", message, fraction, post)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return self.start_reduce_scatter(x).wait()

    def start_all_to_all(self, x: Tensor) -> Started:
        """Row i of `x` (`[ranks, …]`) goes to rank i; row j of the result is from rank j."""
        if self.size == 1:
            return Arrived(x)
        equal = [len(x) // self.size] * self.size
        return self.start_exchange_rows(x, equal, equal)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self.start_all_to_all(x).wait()

    def start_exchange_rows(self, x: Tensor, sent: list[int], received: list[int]) -> Started:
        """All-to-all of rows: `sent[i]` rows of `x`, in order, to rank i, `received[i]` from it."""
        if self.size == 1:
            return Arrived(x)
        message = TransferTensors(x.contiguous(), x.new_empty((sum(received), *x.shape[1:])))
        fraction = 1 - sent[self.index] / max(sum(sent), 1)
        if self.by_gloo:
            filled, rows = message.filled.split(received), message.sent.split(sent)
            filled[self.index].copy_(rows[self.index])
            post = partial(
                exchange_by_gloo, self.others_of(filled), self.others_of(rows), self.handle
            )
        else:
            post = self.asynchronous(
                dist.all_to_all_single, message.filled, message.sent, received, sent
            )
        return self.started("all_to_all", message, fraction, post)

    def exchange_among(self, members: Sequence[int], rows: Tensor) -> Tensor:
        """Row i of `rows` goes to the rank at index `members[i]`, row j of the result is from it; the
        other ranks of the group take no part."""
        message = TransferTensors(rows.contiguous(), rows.new_empty(rows.shape))
        filled: list[Tensor | None] = [None] * self.size
        sent: list[Tensor | None] = [None] * self.size
        for number, index in enumerate(members):
            if index == self.index:
                message.filled[number].copy_(message.sent[number])
            else:
                filled[index], sent[index] = message.filled[number], message.sent[number]
        exchange = exchange_by_gloo if self.by_gloo else exchange_pairs
        ranks = tuple(self.ranks[index] for index in members)
        self.sent_bytes["all_to_all"] += rows.nbytes * (len(members) - 1) // len(members)
        what = f"exchange among {ranks} of {tuple(rows.shape)} {rows.dtype}"
        record = self.watchdog.recorder.begin(what, f"{self.name} among {ranks}", ranks)
        post = partial(exchange, filled, sent, self.handle)
        return Transfer(self.watchdog, record, message, post).wait()

    def others_of(self, rows: Iterable[Tensor]) -> list[Tensor | None]:
        """Rows by rank, without this rank's and empty ones."""
        return [row if i != self.index and row.numel() else None for i, row in enumerate(rows)]

    def asynchronous(self, collective: Callable[..., Work | None], *operands: Any) -> Post:
        """What begins a collective of torch in this group."""
        return partial(collective, *operands, group=self.handle, async_op=True)

    def exchange_rows(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        return self.start_exchange_rows(x, sent, received).wait()

    def started(self, kind: str, message: TransferTensors, fraction: float, post: Post) -> Transfer:
        """A collective that runs beside what follows, of which `fraction` of the bytes of what is sent
        count as sent; `post` begins it."""
        x = message.sent
        self.sent_bytes[kind] += round(x.numel() * x.element_size() * fraction)
        what = f"{kind} over {self.name} of {tuple(x.shape)} {x.dtype}"
        record = self.watchdog.recorder.begin(what, self.channel, self.ranks)
        return Transfer(self.watchdog, record, message, post)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """`x` of the rank at index `source`; others give a tensor of its shape, which is filled."""
        if self.size == 1:
            return x
        post = self.asynchronous(dist.broadcast, x, self.ranks[source])
        return self.started(
            "broadcast", TransferTensors(x, x), float(self.index == source), post
        ).wait()

    def all_reduce_(self, x: Tensor, what: str, largest: bool = False) -> Tensor:
        """Sum over the ranks, or the largest, in place; `what` is it that is summed."""
        if self.size > 1:
            kind = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
            with self.watch(f"all_reduce of {what} over {self.name}"):
                dist.all_reduce(x, kind, group=self.handle)
        return x

    def gather_objects(self, value: T, what: str) -> list[T]:
        """The values of all ranks; plain data, which travels pickled among the ranks."""
        if self.size == 1:
            return [value]
        rows: list[Any] = [None] * self.size
        with self.watch(f"gathering {what} over {self.name}"):
            dist.all_gather_object(rows, value, group=self.handle)
        return rows

    def broadcast_object(self, value: T, what: str, source: int = 0) -> T:
        """The value of the rank at index `source`."""
        if self.size == 1:
            return value
        row = [value]
        with self.watch(f"broadcast of {what} over {self.name}"):
            dist.broadcast_object_list(row, self.ranks[source], group=self.handle)
        return row[0]

    def send(self, x: Tensor, target: int, what: str) -> Transfer:
        """Start sending to the rank at index `target`."""
        self.sent_bytes["send"] += x.numel() * x.element_size()
        what = f"send of {what} to rank {self.ranks[target]}"
        record = self.watchdog.recorder.begin(what, *self.link(self.index, target))
        post = partial(dist.isend, x, self.ranks[target], group=self.handle)
        return Transfer(self.watchdog, record, TransferTensors(x, x), post)

    def start_receive(self, x: Tensor, source: int, what: str) -> Transfer:
        """Start receiving into `x` from the rank at index `source`."""
        what = f"receive of {what} from rank {self.ranks[source]}"
        record = self.watchdog.recorder.begin(what, *self.link(source, self.index))
        post = partial(dist.irecv, x, self.ranks[source], group=self.handle)
        return Transfer(self.watchdog, record, TransferTensors(x, x), post)

    def link(self, source: int, target: int) -> tuple[str, tuple[int, int]]:
        """Channel and ranks of transfers between two members."""
        pair = self.ranks[source], self.ranks[target]
        return f"{self.name} {pair[0]}>{pair[1]}", pair


def total_of(own: Tensor, index: int, others: Tensor) -> Tensor:
    """The sum of rows in the order of ranks: `own`, of rank `index`, and those of the others (`[ranks -
    1, …]`), of which a single one becomes the sum. gloo's reduce-scatter would send twice as much."""
    if len(others) == 1:
        return others[0].add_(own)
    rows = [*others[:index], own, *others[index:]]
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total


class GroupPool:
    """Process groups by the partition of all ranks that they belong to; each is created once.

    Every rank asks in the same order, and in a partition with any group of two or more every rank
    creates one. So all ranks have created equally many groups, from which torch derives their names when
    only members synchronise. For the same reason groups are never destroyed one by one. `options` say
    how long ranks wait for each other; those with a `store` say on failure which of them is missing.
    """

    def __init__(
        self, rank: int, options: WatchOptions | None = None, store: Store | None = None
    ) -> None:
        self.rank, self.sent_bytes = rank, Counter[str]()
        self.watchdog = Watchdog(rank, options, store)
        self.timeout = timedelta(seconds=self.watchdog.backend_seconds)
        self.storage_handles: list[dist.ProcessGroup] = []
        self.handles: dict[tuple[int, Partition], dist.ProcessGroup | None] = {}
        self.groups = WeakSet[Group]()

    def group(self, name: str, partition: Partition, channel: int = 0) -> Group:
        """The group that this rank is in; groups on different `channel`s run concurrently."""
        ranks = next(part for part in partition if self.rank in part)
        if all(len(part) < 2 for part in partition):
            return self._group(name, ranks, None)
        key = (channel, partition)
        if key not in self.handles:
            what = f"making group {name} of {len(ranks)} ranks"
            with self.watchdog.watch(what, f"group {channel} {ranks}", ranks):
                handle = dist.new_group(
                    list(ranks), timeout=self.timeout, use_local_synchronization=True
                )
            assert isinstance(handle, dist.ProcessGroup)  # this rank is a member
            self.handles[key] = handle
        return self._group(name, ranks, self.handles[key])

    def _group(self, name: str, ranks: Sequence[int], handle: dist.ProcessGroup | None) -> Group:
        group = Group(name, ranks, self.watchdog, handle, self.sent_bytes)
        self.groups.add(group)
        return group

    def close(self) -> None:
        """Drop all process groups: their connections end, and ranks that wait in them fail."""
        for group in self.groups:
            group.handle = None
        for transfer in self.watchdog.transfers:
            transfer.abandon()
        self.handles.clear()
        self.storage_handles.clear()

    def storage(self) -> Group:
        """All ranks, for reading and writing files: slow ranks are waited for as long as they live."""
        everyone = self.everyone()
        if everyone.size > 1 and not self.storage_handles:
            with self.watchdog.watch("making the group for files", "group storage", everyone.ranks):
                handle = dist.new_group(list(everyone.ranks), timeout=STORAGE, backend="gloo")
            assert isinstance(handle, dist.ProcessGroup)
            self.storage_handles.append(handle)
        handle = self.storage_handles[0] if self.storage_handles else None
        return self._group("files of all ranks", everyone.ranks, handle)

    def everyone(self) -> Group:
        """The group of all ranks."""
        return self.group("all ranks", (tuple(range(dist.get_world_size())),))
