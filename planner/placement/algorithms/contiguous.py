"""Contiguous partition of an order into one run per device, by dynamic programming.

If memory is the only reason to leave a device, a chain is best partitioned where little is sent.
Minimises transfer time, exactly for the given order; a colocation unit stands at its first member.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....cost_model.compiled import compiled, inner
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints
from ..problem import PlacementCandidate, PlacementProblem, mean_transfer_us

MOST_SEGMENTS = 1500  # positions where an order may be split; longer orders split at every n-th


def contiguous(
    problem: PlacementProblem, order: Ints, name: str = "contiguous"
) -> PlacementCandidate | None:
    """Partition of an order with the least transfer time that fits; None if none does."""
    device = partition(problem.work, segments_of(problem, order), mean_transfer_us(problem.work))
    if device is None:
        return None
    return problem.evaluate_keys(name, device, np.arange(problem.operators, dtype=np.float64))


def segments_of(problem: PlacementProblem, order: Ints) -> Ints:
    """(n) segment of every operator: its unit's position, coarsened to MOST_SEGMENTS."""
    unit = problem.work.operators["unit"]
    first: dict[int, int] = {}
    for v in order:
        first.setdefault(int(unit[v]), len(first))
    stride = -(-len(first) // MOST_SEGMENTS)
    return np.array([first[int(u)] // stride for u in unit], np.int64)


class Runs(NamedTuple):
    """`s` segments and what is known of runs of them on the first devices."""

    segment: Ints  # n: of every operator
    members: Ints  # n: operators by their segment
    first: Ints  # s + 1: where its members begin
    price: Floats  # s: microseconds of what is sent before a segment
    best: Floats  # k + 1, s + 1: least microseconds of the segments before one, on so many devices
    since: Ints  # k + 1, s + 1: where the last of those runs begins
    seen: Ints  # t: the last run that was found to receive a tensor


def partition(work: GraphArrays, segment: Ints, transfer_us: Floats) -> Ints | None:
    """(n) devices of the best runs of segments; None where no runs fit."""
    segments, shape = int(segment.max()) + 1, (len(work.capacity) + 1, int(segment.max()) + 2)
    members = np.argsort(segment, kind="stable")
    runs = Runs(
        segment,
        members,
        np.searchsorted(segment[members], np.arange(segments + 1)),
        _boundary_us(work, segment, transfer_us, segments),
        np.full(shape, np.inf),
        np.zeros(shape, np.int64),
        np.full(work.tensors, -1, np.int64),
    )
    extend(work, runs)
    devices, last = int(np.argmin(runs.best[:, segments])), segments
    if runs.best[devices, segments] == np.inf:
        return None
    device = np.empty(len(segment), np.int64)
    for d in range(devices, 0, -1):
        begin = int(runs.since[d, last])
        device[(begin <= segment) & (segment < last)] = d - 1
        last = begin
    return device


@compiled
def extend(work: GraphArrays, runs: Runs) -> None:
    """Fill `best` and `since`."""
    segment, members, first, price, best, since, seen = runs
    best[0, 0] = 0.0
    for begin in range(len(price)):
        used, largest = 0.0, 0.0
        for end in range(begin + 1, len(price) + 1):
            for i in range(first[end - 1], first[end]):
                used, largest = _take(work, segment, members[i], begin, seen, used, largest)
            fits = False
            for d in range(len(work.capacity)):
                if used + largest <= work.capacity[d]:
                    fits = True
                    cost = best[d, begin] + price[begin]
                    if cost < best[d + 1, end]:
                        best[d + 1, end] = cost
                        since[d + 1, end] = begin
            if not fits:
                break


@inner
def _take(
    work: GraphArrays, segment: Ints, v: int, begin: int, seen: Ints, used: float, largest: float
) -> tuple[float, float]:
    """Add operator `v`, and the tensors it must receive, to the run that starts at segment `begin`.

    A tensor from a later segment counts too, since units may read ahead of their position."""
    operators, edges, reads = work.operators, work.edges, work.reads
    used += operators[v].persistent + operators[v].output
    for i in range(operators[v].read, operators[v].read_after):
        edge = edges[reads[i]]
        if segment[edge.source] != segment[v] and seen[edge.tensor] != begin:
            if segment[edge.source] < begin or segment[edge.source] > segment[v]:
                seen[edge.tensor] = begin
                used += edge.bytes
    return used, max(largest, operators[v].temporary)


def _boundary_us(work: GraphArrays, segment: Ints, transfer_us: Floats, segments: int) -> Floats:
    """(segments) microseconds of the tensors that cross the boundary before a segment."""
    edges, tensor = work.edges, work.edges["tensor"]
    low, high = np.full(work.tensors, segments), np.zeros(work.tensors, np.int64)
    for end in (segment[edges["source"]], segment[edges["target"]]):
        np.minimum.at(low, tensor, end)
        np.maximum.at(high, tensor, end)
    spent, change = np.zeros(work.tensors), np.zeros(segments + 1)
    np.maximum.at(spent, tensor, transfer_us)
    across = low < high
    np.add.at(change, low[across] + 1, spent[across])
    np.subtract.at(change, high[across] + 1, spent[across])
    return np.cumsum(change)[:segments]
