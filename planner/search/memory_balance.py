"""Stages balanced in memory as well as time (Galvatron-BMW, Wang et al. 2024).

Stages of equal seconds are unequal in bytes: the first hold more micro-batches, the last has the head.
A candidate that exceeds memory passes layers from its fullest stage to the emptiest one, which is
slower by those layers and may be the only one that fits:

    8,8,8,8    31 27 23 25 GiB    of 28
    7,8,9,8    27 27 26 25 GiB
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..question.candidate import Candidate
from .driver import SearchSpace

TRIED = 12  # candidates, the fastest first
EXCESS = 1.5  # times the memory limit, beyond which passing layers on does not help


def memory_balanced(space: SearchSpace) -> Iterator[Candidate]:
    """Candidates that fit once layers are passed between their stages, faster than what fits so far."""
    limit, engine = space.memory_limit_bytes, space.engine
    tight = [
        c
        for c in space.candidates
        if limit < c.peak_bytes <= EXCESS * limit
        and c.step_seconds < space.best_seconds
        and c.strategies[0].stages > 1
        and c.model_chunks == 1
    ]
    if not engine.extras or space.options.bounds:
        return
    for candidate in sorted(tight, key=lambda c: c.step_seconds)[:TRIED]:
        if candidate.step_seconds >= space.best_seconds or space.deadline.passed():
            return
        balanced = fitted(space, candidate)
        if balanced is not None:
            space.update_best([balanced])
            yield balanced


def fitted(space: SearchSpace, candidate: Candidate) -> Candidate | None:
    """The candidate with layers passed on, one at a time, until it fits; None where it never does."""
    while candidate.peak_bytes > space.memory_limit_bytes:
        peaks = [stage.peak_bytes for stage in space.pricer.stages(candidate)]
        bounds = passed_on(candidate.bounds, peaks.index(max(peaks)), peaks.index(min(peaks)))
        if bounds is None:
            return None
        moved = space.pricer.mixed(candidate.assignment, bounds)
        if moved is None or moved.peak_bytes >= candidate.peak_bytes:
            return None
        candidate = moved
    return candidate


def passed_on(bounds: tuple[int, ...], fullest: int, emptiest: int) -> tuple[int, ...] | None:
    """Bounds of stages with one call fewer in the fullest and one more in the emptiest; None where a
    stage would have none. Stages between them pass one on."""
    step = 1 if emptiest < fullest else -1
    low, high = sorted((fullest, emptiest))
    moved = tuple(b + step * (low < i <= high) for i, b in enumerate(bounds))
    return moved if all(a < b for a, b in pairwise(moved)) else None
