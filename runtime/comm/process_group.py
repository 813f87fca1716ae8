"""A process group with the basic collectives, and a pool of groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .monitor import Store
from .watchdog import Watchdog, WatchOptions

Partition = tuple[tuple[int, ...], ...]
T = TypeVar("T")
STORAGE = timedelta(hours=6)


class Transfer:
    """A tensor on its way to or from other ranks; `sent` is alive until it has arrived."""

    def __init__(
        self,
        work: dist.Work | None,
        value: Tensor,
        wait: AbstractContextManager[None],
        sent: Tensor | None = None,
    ) -> None:
        self.work, self.value, self.watched, self.sent = work, value, wait, sent

    def wait(self) -> Tensor:
        """The tensor, once it has arrived; one that was sent may be freed then. On a GPU the stream
        waits, not the host."""
        if self.work is not None:
            with self.watched:
                self.work.wait()
        self.work = self.sent = None
        return self.value


class Arriving(Protocol):
    """A tensor that will be there."""

    def wait(self) -> Tensor: ...


class Arrived(NamedTuple):
    """A tensor that is there."""

    value: Tensor

    def wait(self) -> Tensor:
        return self.value


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
        # gloo's reduce-scatter sends as much as an all-reduce; an all-to-all and a local sum, half.
        self.adds_locally = handle is not None and dist.get_backend(handle) == "gloo"

    def alone(self) -> Group:
        """The group of this rank alone."""
        return Group("this rank", (self.rank,), self.watchdog, None, self.sent_bytes)

    def watched(self, kind: str, x: Tensor, fraction: float) -> AbstractContextManager[None]:
        """Count `fraction` of the bytes of `x` as sent; report failures inside with group and shape."""
        self.sent_bytes[kind] += round(x.numel() * x.element_size() * fraction)
        return self.watch(f"{kind} over {self.name} of {tuple(x.shape)} {x.dtype}")

    def watch(self, what: str) -> AbstractContextManager[None]:
        """Record a collective of all ranks of the group that happens inside."""
        return self.watchdog.watch(what, self.channel, self.ranks)

    def all_reduce(self, x: Tensor, largest: bool = False, *, in_place: bool = False) -> Tensor:
        """Sum over the ranks, or the largest: in a new tensor, or in place of a contiguous one."""
        if self.size == 1:
            return x
        kind = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        result = x if in_place else x.clone(memory_format=torch.contiguous_format)
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

    def start_all_reduce(self, x: Tensor, *, in_place: bool = False) -> Transfer:
        """Start to sum over the ranks: in a new tensor, or in place of a contiguous one."""
        if self.size == 1:
            return Transfer(None, x, nullcontext())
        total = x if in_place else x.clone(memory_format=torch.contiguous_format)
        return self.started(
            "all_reduce",
            (total, total),
            2 * (self.size - 1) / self.size,
            lambda: dist.all_reduce(total, group=self.handle, async_op=True),
        )

    def start_all_gather(self, x: Tensor) -> Transfer:
        """Start to gather `[ranks, *x.shape]` from every rank's `x`."""
        if self.size == 1:
            return Transfer(None, x[None], nullcontext())
        result, sent = x.new_empty((self.size, *x.shape)), x.contiguous()
        flat = result.view(-1), sent.view(-1)
        return self.started(
            "all_gather",
            (result, sent),
            self.size - 1,
            lambda: dist.all_gather_into_tensor(*flat, group=self.handle, async_op=True),
        )

    def start_reduce_scatter(self, x: Tensor) -> Transfer:
        """Start to sum `x` (`[ranks, …]`), of which rank i gets row i: `scattered` of what arrives."""
        if self.size == 1:
            return Transfer(None, x, nullcontext())
        fraction, sent = (self.size - 1) / self.size, x.contiguous()
        if self.adds_locally:
            result = sent.new_empty(sent.shape)
            return self.started(
                "reduce_scatter",
                (result, sent),
                fraction,
                lambda: dist.all_to_all_single(result, sent, group=self.handle, async_op=True),
            )
        shard = sent.new_empty(sent.shape[1:])
        flat = shard.view(-1), sent.view(-1)
        return self.started(
            "reduce_scatter",
            (shard, sent),
            fraction,
            lambda: dist.reduce_scatter_tensor(*flat, group=self.handle, async_op=True),
        )

    def scattered(self, arrived: Tensor) -> Tensor:
        """This rank's row of the sum, from what a started reduce-scatter gives."""
        if self.size == 1:
            return arrived[0]
        return arrived.sum(0) if self.adds_locally else arrived

    def start_all_to_all(self, x: Tensor) -> Transfer:
        """Start to send row i of `x` (`[ranks, …]`) to rank i."""
        if self.size == 1:
            return Transfer(None, x, nullcontext())
        result, sent = x.new_empty(x.shape), x.contiguous()
        return self.started(
            "all_to_all",
            (result, sent),
            (self.size - 1) / self.size,
            lambda: dist.all_to_all_single(result, sent, group=self.handle, async_op=True),
        )

    def started(
        self,
        kind: str,
        tensors: tuple[Tensor, Tensor],
        fraction: float,
        start: Callable[[], dist.Work | None],
    ) -> Transfer:
        """A collective that runs beside what follows; `tensors` are what it gives and what it sends."""
        value, sent = tensors
        if self.size == 1:
            return Transfer(None, value, nullcontext())
        with self.watched(kind, sent, fraction):
            work = start()
        number = self.watchdog.recorder.counts[self.channel]
        what = f"wait for {kind} over {self.name} of {tuple(sent.shape)} {sent.dtype}"
        return Transfer(
            work, value, self.watchdog.watch(what, self.channel, self.ranks, number), sent
        )

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """`x` of the rank at index `source`; others give a tensor of its shape, which is filled."""
        if self.size > 1:
            with self.watched("broadcast", x, float(self.index == source)):
                dist.broadcast(x, self.ranks[source], group=self.handle)
        return x

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
        channel, pair = self.link(self.index, target)
        what = f"send of {what} to rank {self.ranks[target]}"
        with self.watchdog.watch(what, channel, pair):
            work = dist.isend(x, self.ranks[target], group=self.handle)
        assert work is not None
        number = self.watchdog.recorder.counts[channel]
        return Transfer(work, x, self.watchdog.watch(f"wait for {what}", channel, pair, number))

    def start_receive(self, x: Tensor, source: int, what: str) -> Transfer:
        """Start receiving into `x` from the rank at index `source`."""
        channel, pair = self.link(source, self.index)
        what = f"receive of {what} from rank {self.ranks[source]}"
        with self.watchdog.watch(what, channel, pair):
            work = dist.irecv(x, self.ranks[source], group=self.handle)
        assert work is not None
        number = self.watchdog.recorder.counts[channel]
        return Transfer(work, x, self.watchdog.watch(f"wait for {what}", channel, pair, number))

    def link(self, source: int, target: int) -> tuple[str, tuple[int, int]]:
        """Channel and ranks of transfers between two members."""
        pair = self.ranks[source], self.ranks[target]
        return f"{self.name} {pair[0]}>{pair[1]}", pair


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

    def group(self, name: str, partition: Partition, channel: int = 0) -> Group:
        """The group that this rank is in; groups on different `channel`s run concurrently."""
        ranks = next(part for part in partition if self.rank in part)
        if all(len(part) < 2 for part in partition):
            return Group(name, ranks, self.watchdog, None, self.sent_bytes)
        key = (channel, partition)
        if key not in self.handles:
            what = f"making group {name} of {len(ranks)} ranks"
            with self.watchdog.watch(what, f"group {channel} {ranks}", ranks):
                handle = dist.new_group(
                    list(ranks), timeout=self.timeout, use_local_synchronization=True
                )
            assert isinstance(handle, dist.ProcessGroup)  # this rank is a member
            self.handles[key] = handle
        return Group(name, ranks, self.watchdog, self.handles[key], self.sent_bytes)

    def storage(self) -> Group:
        """All ranks, for reading and writing files: slow ranks are waited for as long as they live."""
        everyone = self.everyone()
        if everyone.size > 1 and not self.storage_handles:
            with self.watchdog.watch("making the group for files", "group storage", everyone.ranks):
                handle = dist.new_group(list(everyone.ranks), timeout=STORAGE, backend="gloo")
            assert isinstance(handle, dist.ProcessGroup)
            self.storage_handles.append(handle)
        handle = self.storage_handles[0] if self.storage_handles else None
        return Group("files of all ranks", everyone.ranks, self.watchdog, handle, self.sent_bytes)

    def everyone(self) -> Group:
        """The group of all ranks."""
        return self.group("all ranks", (tuple(range(dist.get_world_size())),))
