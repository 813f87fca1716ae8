"""Candidates beyond keeping everything and recomputing: those that could beat what fits.

Where keeping everything fits, nothing that saves memory is faster; where it is no faster than the best
that fits, neither is. What is left are the fast candidates that lack some memory, and, while nothing
fits, those that lack least of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import get_args

from ...ir.plan.plan import DIVIDED, ENDS, HOSTED, PARTS, Memory
from ...ir.plan.strategy import Strategy
from ..candidate import Candidate
from ..deadline import Clock

TRIED = 24  # candidates that keep everything, fastest first; while nothing fits as many small ones
ACTIONS = ("keep", "recompute", "offload", "split")  # what a user may allow
Price = Callable[[Strategy, int, Memory, int], Candidate | None]  # by micro-batches, action, chunks


def further(
    found: Sequence[Candidate], budget: int, price: Price, allowed: Sequence[str], clock: Clock
) -> list[Candidate]:
    """The candidates of all other actions that are `allowed`, given those at the two ends."""
    best = min((c.step_seconds for c in found if c.peak_bytes <= budget), default=inf)
    most = ends(allowed)[0]
    tight = [
        c
        for c in found
        if c.memory == most
        and c.peak_bytes > budget
        and c.step_seconds < best
        and len(c.decisions) == 1
    ]
    tight.sort(key=lambda c: (c.step_seconds, c.peak_bytes, c.word, c.micro_batches))
    tried = tight[:TRIED]
    if best == inf:
        small = sorted(tight[TRIED:], key=lambda c: (c.peak_bytes, c.word, c.micro_batches))
        tried += small[:TRIED]
    return [
        made for row in rows(allowed) for c in tried for made in along(c, row, budget, price, clock)
    ]


def ends(allowed: Sequence[str]) -> tuple[Memory, ...]:
    """What every candidate is priced under: the two ends, as far as they are allowed, or one action
    that is named."""
    named = tuple(m for m in get_args(Memory) if m in allowed and m != "offload")
    return named or (("offload",) if "offload" in allowed else ENDS[:1])


def rows(allowed: Sequence[str]) -> list[tuple[Memory, ...]]:
    """Rows of actions that need less and less memory."""
    found: list[tuple[Memory, ...]] = []
    parts = set(ENDS) <= set(allowed)
    if parts:
        found.append(tuple(m for m in PARTS if m not in HOSTED))
    if "offload" in allowed:
        found.append(tuple(m for m in HOSTED if parts or m not in PARTS))
    if "split" in allowed:
        found.append(tuple(DIVIDED))
    return found


def along(
    candidate: Candidate, row: Sequence[Memory], budget: int, price: Price, clock: Clock
) -> Iterator[Candidate]:
    """A candidate again under action after action, until it fits or none helps any more."""
    (strategy,) = candidate.strategies
    least = inf
    for memory in row:
        if clock.late():
            return
        made = price(strategy, candidate.micro_batches, memory, candidate.chunks)
        if made is None:
            continue
        yield made
        if made.peak_bytes <= budget or made.peak_bytes >= least:
            return
        least = made.peak_bytes
