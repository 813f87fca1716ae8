"""Runs the steps of exchanges one after the other, or overlaps communication with computation.

encode 0 │ encode 1 │ decode 0 │ encode 2 │ decode 1 │ …        this thread
         │  send 0  │  send 1  │    …     │  send 2  │          another, in the same order everywhere
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...ir.plan.program import MAX_BUCKETS_IN_FLIGHT
from .work import ExchangeSteps


def run_exchange(exchange: ExchangeSteps) -> Tensor:
    """Run one exchange to its end; gives its result."""
    try:
        call = next(exchange)
        while True:
            call = exchange.send(call())
    except StopIteration as done:
        result: Tensor = done.value
        return result


def run_exchanges(exchanges: Iterable[ExchangeSteps], device: torch.device) -> Iterator[Tensor]:
    """Results of exchanges, in order. Overlapped on a CPU; on a GPU one after the other, in one stream,
    while the host goes on."""
    return overlap_exchanges(exchanges) if device.type == "cpu" else map(run_exchange, exchanges)


def overlap_exchanges(exchanges: Iterable[ExchangeSteps]) -> Iterator[Tensor]:
    """Results of exchanges, in order. Several are in flight: one communicates while others compute.

    All ranks must give equally many, so that all communicate in the same order.
    """
    with ThreadPoolExecutor(1) as sender:
        in_flight: deque[_PendingExchange] = deque()
        for exchange in exchanges:
            in_flight.append(_PendingExchange(exchange, sender.submit))
            if len(in_flight) == MAX_BUCKETS_IN_FLIGHT:
                yield _first(in_flight)
        while in_flight:
            yield _first(in_flight)


Submit = Callable[[Callable[[], Tensor]], Future[Tensor]]


class _PendingExchange:
    """An exchange whose next communication has been submitted."""

    def __init__(self, exchange: ExchangeSteps, submit: Submit) -> None:
        self.exchange, self.submit = exchange, submit
        self.sent: Future[Tensor] | None = None
        self.result: Tensor | None = None
        self.advance()

    def advance(self) -> None:
        """Advance to the next communication, or to the result."""
        try:
            call = self.exchange.send(self.sent.result()) if self.sent else next(self.exchange)
            self.sent = self.submit(call)
        except StopIteration as done:
            self.result = done.value


def _first(in_flight: deque[_PendingExchange]) -> Tensor:
    """Result of the first; the others advance with it."""
    while in_flight[0].result is None:
        for exchange in in_flight:
            if exchange.result is None:
                exchange.advance()
    result = in_flight.popleft().result
    assert result is not None
    return result
