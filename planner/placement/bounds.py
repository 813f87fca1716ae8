"""Lower bounds on the makespan: critical paths with unavoidable transfers, and shared work.

They hold under every link model, since contention only adds time.
"""

from __future__ import annotations

import numpy as np

from ...cost_model.compiled import compiled
from ...cost_model.placement.arrays import Floats, GraphArrays, Ints, Records
from .problem import PlacementProblem

LEVELS = 64  # quantiles of heads and tails at which the work between them is counted


def lower_bound_us(problem: PlacementProblem) -> float:
    """Maximum of the critical-path bound and the shared-work bound, in microseconds."""
    work, durations = problem.work, problem.fastest_us
    quick = quickest_transfer_us(work)
    head = heads(
        work.operators,
        work.edges["source"][work.reads],
        quick[work.reads],
        work.operators["read"],
        work.operators["read_after"],
        durations,
        False,
    )
    tail = heads(
        work.operators,
        work.edges["target"],
        quick,
        work.operators["first"],
        work.operators["after"],
        durations,
        True,
    )
    chain = float((head + durations + tail).max())
    speeds = np.array([1.0]) if not durations.any() else _speeds(work)
    return max(chain, shared(head, tail, work.operators["compute_us"], float(speeds.sum())))


def _speeds(work: GraphArrays) -> Floats:
    heaviest = int(work.operators["compute_us"].argmax())
    return work.operators["compute_us"][heaviest] / work.duration_us[heaviest]


def quickest_transfer_us(work: GraphArrays) -> Floats:
    """(m) least microseconds of every tensor between two devices; infinite with a single device."""
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


@compiled
def heads(
    operators: Records,
    others: Ints,
    spent: Floats,
    first: Ints,
    after: Ints,
    durations: Floats,
    backward: bool,
) -> Floats:
    """(n) least microseconds before an operator's start (or after its end, `backward`).

    Some predecessors share its device and run one after the other; the others' data must come over
    a link. The bound is the minimum over the number of predecessors that share, latest arrivals
    first.
    """
    n = len(durations)
    earliest = np.zeros(n)
    for i in range(n):
        v = n - 1 - i if backward else i
        low, high = first[v], after[v]
        if low == high:
            continue
        ends = np.empty(high - low)
        for j in range(low, high):
            ends[j - low] = earliest[others[j]] + durations[others[j]]
        arrival = ends + spent[low:high]
        latest_first = np.argsort(-arrival)
        best, together = arrival[latest_first[0]], 0.0
        for count in range(1, high - low + 1):
            together = _in_turn(earliest, durations, others[low:high], latest_first[:count])
            rest = arrival[latest_first[count]] if count < high - low else 0.0
            best = min(best, max(together, rest))
            if together >= best:
                break
        earliest[v] = max(best, ends.max())
    return earliest


@compiled
def _in_turn(release: Floats, durations: Floats, others: Ints, chosen: Ints) -> float:
    """Time at which one device has run some operators, each not before its release."""
    begin = np.empty(len(chosen))
    for i in range(len(chosen)):
        begin[i] = release[others[chosen[i]]]
    clock = 0.0
    done = np.empty(0, np.int64)
    for i in np.argsort(begin):
        v = int(others[chosen[i]])
        if not (done == v).any():  # several tensors of one operator
            clock = max(clock, float(release[v])) + float(durations[v])
            done = np.append(done, v)
    return clock


def shared(head: Floats, tail: Floats, compute_us: Floats, speed: float) -> float:
    """Bound (us): head + tail + work of the operators between them, shared by all devices."""
    best = 0.0
    for low in np.unique(np.quantile(head, np.linspace(0, 1, LEVELS))):
        inside = head >= low
        for high in np.unique(np.quantile(tail[inside], np.linspace(0, 1, LEVELS))):
            load = compute_us[inside & (tail >= high)].sum() / speed
            best = max(best, float(low + load + high))
    return best
