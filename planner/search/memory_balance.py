"""Stages balanced in memory as well as time (Galvatron-BMW, Wang et al. 2024).

Stages of equal seconds are unequal in bytes: the first hold more micro-batches and the embedding, the
last has the head. The layers of a candidate that exceeds memory are dealt out anew, so that every stage
fits and the slowest takes as little as it can:

    6,6,6,6    29 24 23 29 GiB    of 27
    5,7,7,5    26 27 26 25 GiB

A stage with fewer calls takes less of both, so stages that take as many calls as fit, one after the
other, find bounds wherever there are any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from math import inf

from ...ir.cached import cached_method
from ...ir.plan.plan import Stage
from ..pricing.candidate_pricer import CandidatePricer
from ..question.candidate import Candidate
from .driver import SearchSpace

TRIED = 12  # candidates, the fastest first
EXCESS = 1.5  # times the memory limit, beyond which other stages do not help
CLOSE = 1e-3  # of the slowest stage's seconds


def memory_balanced(space: SearchSpace) -> Iterator[Candidate]:
    """Candidates that fit once their layers are dealt out anew, faster than what fits so far."""
    limit, engine = space.memory_limit_bytes, space.engine
    tight = [
        c
        for c in space.candidates
        if c.step_seconds < space.best_seconds
        and c.strategies[0].stages > 1
        and c.model_chunks == 1
        and limit < c.peak_bytes <= EXCESS * limit
    ]
    if not engine.extras or space.options.bounds:
        return
    for candidate in sorted(tight, key=lambda c: c.step_seconds)[:TRIED]:
        if candidate.step_seconds >= space.best_seconds or space.deadline.passed():
            return
        balanced = fitted(space, candidate)
        if balanced is not None and balanced.peak_bytes <= limit:
            space.update_best([balanced])
            yield balanced


def fitted(space: SearchSpace, candidate: Candidate) -> Candidate | None:
    """The candidate with the bounds of stages that fit whose slowest takes least; None without any."""
    stages, limit = StageSpans(space.pricer, candidate), space.memory_limit_bytes
    bounds = stages.bounds(limit, inf)
    if bounds is None:
        return None
    low, high = stages.slowest(candidate.bounds), stages.slowest(bounds)
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        faster = stages.bounds(limit, middle)
        if faster is None:
            low = middle
        else:
            bounds, high = faster, stages.slowest(faster)
    return space.pricer.mixed(candidate.assignment, bounds)


class StageSpans:
    """The stages that a candidate's calls can be dealt out to."""

    def __init__(self, pricer: CandidatePricer, candidate: Candidate) -> None:
        self.pricer, self.assignment = pricer, candidate.assignment
        self.calls, self.count = len(pricer.calls), len(candidate.bounds) - 1
        prices = pricer.call_prices.for_assignment(candidate.assignment)
        reshard_seconds = pricer.reshard_prices.seconds(candidate.assignment)
        assert prices is not None
        assert reshard_seconds is not None
        self.prices, self.reshard_seconds = prices, reshard_seconds

    @cached_method
    def stage(self, number: int, first: int, last: int) -> Stage | None:
        """Stage `number` with calls `first` to `last` - 1; None if they are no work."""
        spans = ((first, last),)
        of_calls = self.prices, self.reshard_seconds
        return self.pricer.mixed_stage(self.assignment, (number, self.count), spans, *of_calls)

    def busy_seconds(self, number: int, first: int, last: int) -> float:
        stage = self.stage(number, first, last)
        return 0.0 if stage is None else stage.forward_seconds + stage.backward_seconds

    def slowest(self, bounds: tuple[int, ...]) -> float:
        """Seconds of a micro-batch in the slowest stage."""
        return max(self.busy_seconds(n, *span) for n, span in enumerate(pairwise(bounds)))

    def fits(self, number: int, first: int, last: int, limit_bytes: int, seconds: float) -> bool:
        stage = self.stage(number, first, last)
        fast = self.busy_seconds(number, first, last) <= seconds
        return stage is None or (stage.peak_bytes <= limit_bytes and fast)

    def bounds(self, limit_bytes: int, seconds: float) -> tuple[int, ...] | None:
        """Bounds of stages within bytes and seconds of a micro-batch; None where there are none."""
        bounds = [0]
        for number in range(self.count):
            first, left = bounds[-1], self.count - 1 - number
            ends = range(first + 1 if left else self.calls, self.calls - left + 1)
            fitting = bisect_left(
                ends,
                True,
                key=lambda end, n=number, a=first: not self.fits(n, a, end, limit_bytes, seconds),
            )
            if not fitting:
                return None
            bounds.append(ends[fitting - 1])
        return tuple(bounds)
