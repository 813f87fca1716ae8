"""Tensors on their way between ranks: a collective starts, runs beside what follows, is awaited.

gloo sends a message once it knows that the other rank is ready for it. Where that comes after a large
message on the same connection, two ranks send one after the other, at half the speed of their link. So
receives are posted before sends here, and what gloo gathers is given to it in segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor

from .flight_recorder import Record
from .watchdog import Watchdog

SEGMENT_BYTES = 2**20
Give = Callable[[Tensor], Tensor]


class Messages:
    """Messages on their way, as one."""

    def __init__(self, works: Sequence[dist.Work | None]) -> None:
        self.works = [work for work in works if work is not None]

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self.works)

    def wait(self) -> None:
        for work in self.works:
            work.wait()


Post = Callable[[], dist.Work | Messages | None]  # begins a message


class Arriving(Protocol):
    """A tensor that will be there."""

    def wait(self) -> Tensor: ...


class Arrived(NamedTuple):
    """A tensor that is there."""

    value: Tensor

    def wait(self) -> Tensor:
        return self.value

    def done(self) -> bool:
        return True

    def then(self, give: Give) -> Arrived:
        return Arrived(give(self.value))


class TransferTensors(NamedTuple):
    """What a collective or transfer sends, which is alive until it has arrived, and what it fills."""

    sent: Tensor
    filled: Tensor


class Transfer:
    """A message on its way, recorded by the `watchdog` from its start until it has been awaited."""

    def __init__(
        self, watchdog: Watchdog, record: Record, message: TransferTensors, start: Post
    ) -> None:
        self.watchdog, self.record, self.value = watchdog, record, message.filled
        self.sent: Tensor | None = message.sent
        self.gives: list[Give] = []
        with watchdog.inside(record):
            self.work = start()
        watchdog.transfers.add(self)

    def then(self, give: Give) -> Transfer:
        """What `give` makes of what has arrived is what `wait` gives."""
        self.gives.append(give)
        return self

    def done(self) -> bool:
        """Whether it has arrived; waits for nothing."""
        return self.work is None or self.work.is_completed()

    def abandon(self) -> None:
        """Forget the message, whose connection may then end."""
        self.work = self.sent = None

    def wait(self) -> Tensor:
        """The tensor, once it has arrived; what was sent may be freed then. On a GPU the stream waits,
        not the host."""
        if self.work is not None:
            with self.watchdog.inside(self.record):
                self.work.wait()
        if self.sent is not None:
            self.watchdog.recorder.finish(self.record)
        self.work = self.sent = None
        while self.gives:
            self.value = self.gives.pop(0)(self.value)
        return self.value


Started = Arrived | Transfer


def gather_segments(rows: Tensor, sent: Tensor, group: dist.ProcessGroup | None) -> Messages:
    """Fill `rows` (`[ranks, elements]`) by what each rank sends (`[elements]`)."""
    size = max(SEGMENT_BYTES // sent.element_size(), 1)
    parts = zip(rows.split(size, 1), sent.split(size), strict=True)
    return Messages(
        [dist.all_gather(list(into), part, group=group, async_op=True) for into, part in parts]
    )


def exchange_by_gloo(
    filled: Sequence[Tensor | None], sent: Sequence[Tensor | None], group: dist.ProcessGroup | None
) -> Messages:
    """Send `sent[i]` to rank i of the group, and fill `filled[i]` by what it sends; None: nothing."""
    ranks = dist.get_process_group_ranks(group)
    works = [
        *(dist.irecv(x, n, group) for x, n in zip(filled, ranks, strict=True) if x is not None),
        *(dist.isend(x, n, group) for x, n in zip(sent, ranks, strict=True) if x is not None),
    ]
    return Messages(works)


def exchange_pairs(
    filled: Sequence[Tensor | None], sent: Sequence[Tensor | None], group: dist.ProcessGroup | None
) -> Messages:
    """What `exchange_by_gloo` does, as one batch: elsewhere messages of a pair wait for each other."""
    ranks = dist.get_process_group_ranks(group)
    messages = [
        dist.P2POp(direction, x, rank, group)
        for direction, tensors in ((dist.irecv, filled), (dist.isend, sent))
        for x, rank in zip(tensors, ranks, strict=True)
        if x is not None
    ]
    return Messages(dist.batch_isend_irecv(messages))
