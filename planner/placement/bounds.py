"""What no placement can beat: chains with the transfers that joins force, and work to be shared.

Every bound holds under every link model, since contention only adds time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...cost_model.placement.arrays import Floats, Work
from .problem import Problem

LEVELS = 64  # heads and tails at which the work between them is counted


def lower_bound_us(problem: Problem) -> float:
    """The best of the chain bound and the shared-work bound."""
    work, own = problem.work, problem.fastest_us
    quick = quickest_transfer_us(work)
    head = heads(
        work.operators,
        work.edges["source"][work.reads],
        quick[work.reads],
        work.operators["read"],
        work.operators["read_after"],
        own,
        False,
    )
    tail = heads(
        work.operators,
        work.edges["target"],
        quick,
        work.operators["first"],
        work.operators["after"],
        own,
        True,
    )
    chain = float((head + own + tail).max())
    speeds = np.array([1.0]) if not own.any() else _speeds(work)
    return max(chain, shared(head, tail, work.operators["compute_us"], float(speeds.sum())))


def _speeds(work: Work) -> Floats:
    heaviest = int(work.operators["compute_us"].argmax())
    return work.operators["compute_us"][heaviest] / work.duration_us[heaviest]


def quickest_transfer_us(work: Work) -> Floats:
    """(m) least microseconds of every tensor between two devices; forever where there is one."""
    devices = work.duration_us.shape[1]
    apart = ~np.eye(devices, dtype=bool)
    if devices == 1:
        return np.full(len(work.edges), np.inf)
    alpha, beta = work.links[0][apart].min(), work.links[1][apart].min()
    by_formula = np.where(work.edges["bytes"] > 0, alpha + beta * work.edges["bytes"], 0.0)
    spent = np.where(work.edges["fixed_us"] >= 0, work.edges["fixed_us"], by_formula)
    least = np.full(work.tensors, np.inf)  # edges of one tensor may disagree: the first one counts
    np.minimum.at(least, work.edges["tensor"], spent)
    return least[work.edges["tensor"]]


@njit(cache=True)
def heads(operators, others, spent, first, after, own, backward):
    """(n) least time before an operator's start (or after its end, `backward`).

    Of the operators just before it, some share its device and run one after the other; the first
    that does not share it, in the order of its arrival, must come over a link. The best case is the
    least over how many share.
    """
    n = len(own)
    found = np.zeros(n)
    for i in range(n):
        v = n - 1 - i if backward else i
        low, high = first[v], after[v]
        if low == high:
            continue
        ends = np.empty(high - low)
        for j in range(low, high):
            ends[j - low] = found[others[j]] + own[others[j]]
        arrival = ends + spent[low:high]
        late = np.argsort(-arrival)
        best, together = arrival[late[0]], 0.0
        for count in range(1, high - low + 1):
            together = _in_turn(found, own, others[low:high], late[:count])
            rest = arrival[late[count]] if count < high - low else 0.0
            best = min(best, max(together, rest))
            if together >= best:
                break
        found[v] = max(best, ends.max())
    return found


@njit(cache=True)
def _in_turn(release, own, others, chosen):
    """When one device is done with some operators, each not before its release."""
    begin = np.empty(len(chosen))
    for i in range(len(chosen)):
        begin[i] = release[others[chosen[i]]]
    clock = 0.0
    done = np.empty(0, np.int64)
    for i in np.argsort(begin):
        v = others[chosen[i]]
        if not (done == v).any():  # several tensors of one operator
            clock = max(clock, release[v]) + own[v]
            done = np.append(done, v)
    return clock


def shared(head: Floats, tail: Floats, compute_us: Floats, speed: float) -> float:
    """Work that all devices together do after some head and before some tail, with both added."""
    best = 0.0
    for low in np.unique(np.quantile(head, np.linspace(0, 1, LEVELS))):
        inside = head >= low
        for high in np.unique(np.quantile(tail[inside], np.linspace(0, 1, LEVELS))):
            load = compute_us[inside & (tail >= high)].sum() / speed
            best = max(best, float(low + load + high))
    return best
