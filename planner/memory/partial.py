"""Candidates that save a part of what backward reads: those that could beat what fits.

Where keeping everything fits, nothing that recomputes is faster; where it is no faster than the best
that fits, neither is. What is left are the fast candidates that lack some memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from ...ir.plan import ENDS, PARTS

if TYPE_CHECKING:
    from ..candidate import Candidate
    from ..search import Space

TRIED = 24  # candidates that keep everything, fastest first


def partial(space: Space) -> list[Candidate]:
    """The candidates, none where the options leave no choice between the two ends."""
    if not set(ENDS) <= set(space.options.memory_actions):
        return []
    best = min((c.step_seconds for c in space.fitting()), default=inf)
    tight = [
        c
        for c in space.found
        if c.memory == "keep" and c.peak_bytes > space.budget and c.step_seconds < best
    ]
    tight = [c for c in tight if len(c.decisions) == 1]
    tight.sort(key=lambda c: (c.step_seconds, c.peak_bytes, c.word, c.micro_batches))
    return [made for candidate in tight[:TRIED] for made in parts(space, candidate)]


def parts(space: Space, candidate: Candidate) -> Iterator[Candidate]:
    """A candidate again, saving less and less, until it fits."""
    (strategy,) = candidate.strategies
    for memory in PARTS:
        if space.clock.late():
            return
        made = space.evaluator.candidate(strategy, candidate.micro_batches, memory)
        if made is not None:
            yield made
            if made.peak_bytes <= space.budget:
                return
