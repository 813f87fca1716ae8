"""Tensors on their way between ranks: a collective starts, runs beside what follows, is awaited."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor

from .flight_recorder import Record
from .watchdog import Watchdog

Give = Callable[[Tensor], Tensor]
Post = Callable[[], dist.Work | None]  # begins a message


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

    def then(self, give: Give) -> Transfer:
        """What `give` makes of what has arrived is what `wait` gives."""
        self.gives.append(give)
        return self

    def done(self) -> bool:
        """Whether it has arrived; waits for nothing."""
        return self.work is None or self.work.is_completed()

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
