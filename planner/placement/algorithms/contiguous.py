"""Contiguous partition of an order into one run per device, by dynamic programming.

If memory is the only reason to leave a device, a chain is best partitioned where little is sent.
Minimises transfer time, exactly for the given order; a colocation unit stands at its first member.
"""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints
from ..problem import PlacementCandidate, PlacementProblem, mean_transfer_us

MOST_SEGMENTS = 1500  # positions where an order may be split; longer orders split at every n-th


def contiguous(
    problem: PlacementProblem, order: Ints, name: str = "contiguous"
) -> PlacementCandidate | None:
    """Partition of an order with the least transfer time that fits; None if none does."""
    segment = segments_of(problem, order)
    device = np.full(problem.operators, -1, np.int64)
    if not partition(problem.work, segment, mean_transfer_us(problem.work), device):
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


@compiled
def partition(work: GraphArrays, segment: Ints, transfer_us: Floats, device: Ints) -> bool:
    """Fill `device` (n) with the best runs of segments; False where no runs fit."""
    segments, devices = segment.max() + 1, len(work.capacity)
    price = _boundary_us(work, segment, transfer_us, segments)
    best = np.full((devices + 1, segments + 1), np.inf)
    since = np.zeros((devices + 1, segments + 1), np.int64)
    best[0, 0] = 0.0
    members = np.argsort(segment, kind="mergesort")
    numbers: Ints = np.arange(int(segments) + 1, dtype=np.int64)
    first: Ints = np.searchsorted(segment[members], numbers)
    seen = np.full(work.tensors, -1)
    for begin in range(segments):
        used, largest = 0.0, 0.0
        for end in range(begin + 1, segments + 1):
            for i in range(first[end - 1], first[end]):
                used, largest = _take(work, segment, members[i], begin, seen, used, largest)
            fits = False
            for d in range(devices):
                if used + largest <= work.capacity[d]:
                    fits = True
                    cost = best[d, begin] + price[begin]
                    if cost < best[d + 1, end]:
                        best[d + 1, end] = cost
                        since[d + 1, end] = begin
            if not fits:
                break
    used_devices = np.argmin(best[:, segments])
    if best[used_devices, segments] == np.inf:
        return False
    last = segments
    for d in range(used_devices, 0, -1):
        for v in range(len(segment)):
            if since[d, last] <= segment[v] < last:
                device[v] = d - 1
        last = since[d, last]
    return True


@compiled
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


@compiled
def _boundary_us(work: GraphArrays, segment: Ints, transfer_us: Floats, segments: int) -> Floats:
    """(segments) microseconds of the tensors that cross the boundary before a segment."""
    edges = work.edges
    low = np.full(work.tensors, segments)
    high = np.zeros(work.tensors, np.int64)
    spent = np.zeros(work.tensors)
    for e in range(len(edges)):
        t = edges[e].tensor
        for v in (edges[e].source, edges[e].target):
            low[t], high[t] = min(low[t], segment[v]), max(high[t], segment[v])
        spent[t] = max(spent[t], transfer_us[e])
    change = np.zeros(segments + 1)
    for t in range(work.tensors):
        if low[t] < high[t]:
            change[low[t] + 1] += spent[t]
            change[high[t] + 1] -= spent[t]
    return np.cumsum(change)[:segments]
