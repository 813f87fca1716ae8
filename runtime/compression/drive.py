"""Who calls the communication of exchanges: one after the other, or while others compute.

encode 0 │ encode 1 │ decode 0 │ encode 2 │ decode 1 │ …        this thread
         │  send 0  │  send 1  │    …     │  send 2  │          another, in the same order everywhere
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...ir.program import TOGETHER
from .work import Work


def drive(work: Work) -> Tensor:
    """The result of one exchange."""
    try:
        call = next(work)
        while True:
            call = work.send(call())
    except StopIteration as done:
        result: Tensor = done.value
        return result


def driven(works: Iterable[Work], device: torch.device) -> Iterator[Tensor]:
    """The results of exchanges in their order. On a GPU streams overlap already."""
    return overlapped(works) if device.type == "cpu" else map(drive, works)


def overlapped(works: Iterable[Work]) -> Iterator[Tensor]:
    """The results of exchanges in their order. Some are under way at once: what one sends travels while
    others are computed. All ranks give as many, so that all send in the same order."""
    with ThreadPoolExecutor(1) as sender:
        moving: deque[_Moving] = deque()
        for work in works:
            moving.append(_Moving(work, sender.submit))
            if len(moving) == TOGETHER:
                yield _first(moving)
        while moving:
            yield _first(moving)


Submit = Callable[[Callable[[], Tensor]], Future[Tensor]]


class _Moving:
    """An exchange that has come to its next message."""

    def __init__(self, work: Work, submit: Submit) -> None:
        self.work, self.submit = work, submit
        self.sent: Future[Tensor] | None = None
        self.result: Tensor | None = None
        self.advance()

    def advance(self) -> None:
        """On to the next message, or the result."""
        try:
            call = self.work.send(self.sent.result()) if self.sent else next(self.work)
            self.sent = self.submit(call)
        except StopIteration as done:
            self.result = done.value


def _first(moving: deque[_Moving]) -> Tensor:
    """The result of the first; the others go on as it does."""
    while moving[0].result is None:
        for one in moving:
            if one.result is None:
                one.advance()
    result = moving.popleft().result
    assert result is not None
    return result
