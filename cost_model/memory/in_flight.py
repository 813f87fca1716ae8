"""Micro-batches in flight on a stage: those that have begun forward and not ended backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ir.plan.schedules.interleave import in_flight_by_chunk
from ...ir.plan.workload import WaitingBeside


class InFlight(NamedTuple):
    """Micro-batches in flight on a stage: `peak` at once, of `micro_batches` per step, in `chunks`
    model chunks. `beside`: those beside the running one, where backward runs in two parts."""

    peak: float
    micro_batches: int
    chunks: int = 1
    beside: tuple[WaitingBeside, ...] = ()

    @property
    def most(self) -> float:
        """Micro-batches that have begun forward and not ended backward, at once."""
        return max((case.saved + case.parted + 1 for case in self.beside), default=self.peak)

    @property
    def gradients_accumulated(self) -> bool:
        """Whether gradients of earlier micro-batches exist when most are in flight."""
        return self.micro_batches > self.peak

    def cases(self) -> Iterator[WaitingBeside]:
        """What may wait beside the micro-batch that runs, to check."""
        if self.beside:
            yield from self.beside
            return
        others = [(self.peak - 1, self.gradients_accumulated)]
        if not self.gradients_accumulated and self.micro_batches > 1:
            others.append((self.peak - 2, True))
        for kind in ("F", "B"):
            yield from (WaitingBeside(kind, count, 0.0, there) for count, there in others)


def undominated(options: Iterable[InFlight]) -> list[InFlight]:
    """Those of which one holds the most bytes, whatever a stage holds: each has beside some step more
    than any other has."""
    most: list[InFlight] = []
    for option in sorted(set(options), key=lambda o: o.peak, reverse=True):
        if not any(_holds_all_of(other, option) for other in most):
            most.append(option)
    return most


def _holds_all_of(one: InFlight, other: InFlight) -> bool:
    cases = [*one.cases()]
    return (
        one.peak >= other.peak
        and one.gradients_accumulated >= other.gradients_accumulated
        and all(any(case.holds_all_of(less) for case in cases) for less in other.cases())
    )


def interleaved_in_flight(
    stages: int, number: int, micro_batches: int, saved: Sequence[float]
) -> float:
    """Peak micro-batches in flight on stage `number` of an interleaved schedule; `saved`: saved
    bytes per model chunk."""
    peak = float(
        (_chunks_in_flight(stages, number, micro_batches, len(saved)) @ np.array(saved)).max()
    )
    return peak / sum(saved) if sum(saved) else 0.0


@cache
def _chunks_in_flight(
    stages: int, number: int, micro_batches: int, chunks: int
) -> NDArray[np.float64]:
    return np.array(in_flight_by_chunk(stages, number, micro_batches, chunks), dtype=np.float64)


def micro_batches_in_flight(after: int, stages: int, micro_batches: int, chunks: int) -> float:
    """Micro-batches in flight on a stage under 1F1B with `after` stages behind it.

    Interleaved (Narayanan et al. 2021): a stage warms up with 2 * after + (chunks - 1) * stages
    chunks and holds one more.
    """
    if chunks == 1:
        return min(after + 1, micro_batches)
    warm = 2 * after + (chunks - 1) * stages + 1
    return min(warm / chunks, micro_batches)
