"""Candidates that save a part of what backward reads: those that could beat what fits.

Where keeping everything fits, nothing that recomputes is faster; where it is no faster than the best
that fits, neither is. What is left are the fast candidates that lack some memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

from ...ir.plan import PARTS, Memory
from ...ir.strategy import Strategy
from ..candidate import Candidate
from ..clock import Clock

TRIED = 24  # candidates that keep everything, fastest first
Price = Callable[[Strategy, int, Memory], Candidate | None]  # of micro-batches and a memory action


def partial(
    found: Sequence[Candidate], budget: int, price: Price, clock: Clock
) -> list[Candidate]:
    """The candidates that save parts, given those at the two ends."""
    best = min((c.step_seconds for c in found if c.peak_bytes <= budget), default=inf)
    tight = [
        c
        for c in found
        if c.memory == "keep" and c.peak_bytes > budget and c.step_seconds < best
        and len(c.decisions) == 1
    ]
    tight.sort(key=lambda c: (c.step_seconds, c.peak_bytes, c.word, c.micro_batches))
    return [made for c in tight[:TRIED] for made in parts(c, budget, price, clock)]


def parts(candidate: Candidate, budget: int, price: Price, clock: Clock) -> Iterator[Candidate]:
    """A candidate again, saving less and less, until it fits."""
    (strategy,) = candidate.strategies
    for memory in PARTS:
        if clock.late():
            return
        made = price(strategy, candidate.micro_batches, memory)
        if made is not None:
            yield made
            if made.peak_bytes <= budget:
                return
