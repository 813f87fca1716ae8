"""Cuts of an order into one run per device: the least transfer time by dynamic programming.

With memory the only reason to leave a device, a model that is a chain is best cut where little is
sent. Exact for the order given, if every run is on a device of its own; units of operators come at
their first member.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ....cost_model.placement.arrays import Ints
from ..problem import Candidate, Problem, mean_transfer_us

MOST_PIECES = 1500  # places where an order may be cut; longer orders are cut at every n-th


def contiguous(problem: Problem, order: Ints, name: str = "contiguous") -> Candidate | None:
    """The cut of an order of operators with the least transfers that fits; None if none does."""
    piece = pieces_of(problem, order)
    device = np.full(problem.operators, -1, np.int64)
    if not cut(problem.work, piece, mean_transfer_us(problem.work), device):
        return None
    return problem.by_key(name, device, np.arange(problem.operators, dtype=np.float64))


def pieces_of(problem: Problem, order: Ints) -> Ints:
    """(n) the piece of every operator: its unit's place in the order, thinned to a few."""
    unit = problem.work.operators["unit"]
    first: dict[int, int] = {}
    for v in order:
        first.setdefault(int(unit[v]), len(first))
    stride = -(-len(first) // MOST_PIECES)
    return np.array([first[int(u)] // stride for u in unit], np.int64)


@njit(cache=True)
def cut(work, piece, transfer_us, device):
    """Fill `device` (n) with the best runs of pieces; False where no runs fit."""
    pieces, devices = piece.max() + 1, len(work.capacity)
    price = _crossing(work, piece, transfer_us, pieces)
    best = np.full((devices + 1, pieces + 1), np.inf)
    since = np.zeros((devices + 1, pieces + 1), np.int64)
    best[0, 0] = 0.0
    members = np.argsort(piece, kind="mergesort")
    first = np.searchsorted(piece[members], np.arange(pieces + 1))
    seen = np.full(work.tensors, -1)
    for begin in range(pieces):
        used, largest = 0.0, 0.0
        for end in range(begin + 1, pieces + 1):
            for i in range(first[end - 1], first[end]):
                used, largest = _take(work, piece, members[i], begin, seen, used, largest)
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
    used_devices = np.argmin(best[:, pieces])
    if best[used_devices, pieces] == np.inf:
        return False
    last = pieces
    for d in range(used_devices, 0, -1):
        for v in range(len(piece)):
            if since[d, last] <= piece[v] < last:
                device[v] = d - 1
        last = since[d, last]
    return True


@njit(cache=True)
def _take(work, piece, v, begin, seen, used, largest):
    """A run that starts at piece `begin` grows by an operator, and by what it must receive; a tensor
    that a later piece makes counts too, for units may read ahead of their place."""
    operators, edges, reads = work.operators, work.edges, work.reads
    used += operators[v].persistent + operators[v].output
    for i in range(operators[v].read, operators[v].read_after):
        edge = edges[reads[i]]
        if piece[edge.source] != piece[v] and seen[edge.tensor] != begin:
            if piece[edge.source] < begin or piece[edge.source] > piece[v]:
                seen[edge.tensor] = begin
                used += edge.bytes
    return used, max(largest, operators[v].temporary)


@njit(cache=True)
def _crossing(work, piece, transfer_us, pieces):
    """(pieces) microseconds of all tensors that cross a cut before a piece, each sent once."""
    edges = work.edges
    low = np.full(work.tensors, pieces)
    high = np.zeros(work.tensors, np.int64)
    spent = np.zeros(work.tensors)
    for e in range(len(edges)):
        t = edges[e].tensor
        for v in (edges[e].source, edges[e].target):
            low[t], high[t] = min(low[t], piece[v]), max(high[t], piece[v])
        spent[t] = max(spent[t], transfer_us[e])
    change = np.zeros(pieces + 1)
    for t in range(work.tensors):
        if low[t] < high[t]:
            change[low[t] + 1] += spent[t]
            change[high[t] + 1] -= spent[t]
    return np.cumsum(change)[:pieces]
