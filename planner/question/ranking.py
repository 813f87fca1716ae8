"""Candidates in order: those that fit first, faster ones first. The memory of a candidate is worked out
only where its place depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from .candidate import Candidate


def fitting(candidates: Iterable[Candidate], limit_bytes: int) -> Iterator[Candidate]:
    """Candidates within a memory limit, faster ones first; ties by less memory, then a fixed order."""
    return (candidate for candidate, fits in by_seconds(candidates, limit_bytes) if fits)


def ranked(candidates: Iterable[Candidate], limit_bytes: int) -> Iterator[Candidate]:
    """Those that fit, then the others, both in the order of `fitting`."""
    others: list[Candidate] = []
    for candidate, fits in by_seconds(candidates, limit_bytes):
        if fits:
            yield candidate
        else:
            others.append(candidate)
    yield from others


def smallest(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate that needs least memory, of equal ones the fastest."""
    return min(candidates, key=lambda candidate: (candidate.peak_bytes, candidate.step_seconds))


def by_seconds(
    candidates: Iterable[Candidate],
    limit_bytes: int,
    wanted: Callable[[Candidate], bool] = lambda candidate: True,
) -> Iterator[tuple[Candidate, bool]]:
    """Candidates that are still `wanted` when it is their turn and whether each fits, faster ones first;
    ties by less memory, then a fixed order."""

    def seconds(candidate: Candidate) -> float:
        return candidate.step_seconds

    for _, equal in groupby(sorted(candidates, key=seconds), seconds):
        for candidate in sorted(filter(wanted, equal), key=_tie):
            yield candidate, candidate.peak_bytes <= limit_bytes


def _tie(candidate: Candidate) -> tuple[object, ...]:
    return (
        candidate.peak_bytes,
        candidate.strategy_text,
        candidate.micro_batches,
        candidate.schedule,
        candidate.model_chunks,
        candidate.memory_text,
    )
