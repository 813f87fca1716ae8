"""Lower bounds on the makespan: critical paths with unavoidable transfers, and shared work.

They hold under every link model, since contention only adds time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...cost_model.compiled import compiled, inner
from ...cost_model.placement.arrays import Floats, GraphArrays, Ints, sort_by
from .problem import PlacementProblem

LEVELS = 64  # quantiles of heads and tails at which the work between them is counted


def lower_bound_us(problem: PlacementProblem) -> float:
    """Maximum of the critical-path bound and the shared-work bound, in microseconds."""
    work, durations = problem.work, problem.fastest_us
    head, tail = (earliest_us(problem, backward) for backward in (False, True))
    chain = float((head + durations + tail).max())
    speeds = np.array([1.0]) if not durations.any() else _speeds(work)
    return max(chain, shared(head, tail, work.operators["compute_us"], float(speeds.sum())))


def earliest_us(problem: PlacementProblem, backward: bool) -> Floats:
    """(n) least microseconds before an operator's start (or after its end, `backward`)."""
    work, n = problem.work, problem.operators
    quick = quickest_transfer_us(work)
    names = ("first", "after") if backward else ("read", "read_after")
    first, after = (np.ascontiguousarray(work.operators[name]) for name in names)
    others = work.edges["target"] if backward else work.edges["source"][work.reads]
    spent = quick if backward else quick[work.reads]
    most = int((after - first).max(initial=0))
    neighbours = OperatorNeighbours(
        np.ascontiguousarray(others),
        spent,
        first,
        after,
        np.zeros(most),
        np.zeros(most),
        np.zeros(most, np.int64),
        np.zeros(most, np.int64),
        np.zeros(most, np.int64),
        np.full(n, -1, np.int64),
    )
    earliest = np.zeros(n)
    heads(neighbours, problem.fastest_us, earliest, backward)
    return earliest


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


class OperatorNeighbours(NamedTuple):
    """The operators that each one waits for, `others[first[v]:after[v]]`, and scratch for those of
    one, `d` at most."""

    others: Ints  # m
    spent: Floats  # m: least microseconds of a transfer
    first: Ints  # n
    after: Ints  # n
    later: Floats  # d: minus the arrival from another device
    release: Floats  # d: earliest start
    by_arrival: Ints  # d: numbers by arrival, the latest first
    by_release: Ints  # d: numbers by release
    place: Ints  # d: in the order of arrival
    counted: Ints  # n: the last number of a count that an operator was part of


@compiled
def heads(near: OperatorNeighbours, durations: Floats, earliest: Floats, backward: bool) -> None:
    """Fill `earliest` (n): least microseconds before an operator's start (or after its end).

    Some predecessors share its device and run one after the other; the others' data must come over
    a link. The bound is the minimum over the number of predecessors that share, latest arrivals
    first.
    """
    n, counts = len(durations), 0
    for i in range(n):
        v = n - 1 - i if backward else i
        low, degree, last = near.first[v], near.after[v] - near.first[v], 0.0
        if degree == 0:
            continue
        for j in range(degree):
            other = near.others[low + j]
            end = earliest[other] + durations[other]
            near.later[j], near.release[j] = -(end + near.spent[low + j]), earliest[other]
            last = max(last, end)
        sort_by(near.later, near.by_arrival, degree)
        sort_by(near.release, near.by_release, degree)
        for j in range(degree):
            near.place[near.by_arrival[j]] = j
        best = -near.later[near.by_arrival[0]]
        for count in range(1, degree + 1):
            counts += 1
            together = _in_turn(near, durations, low, degree, count, counts)
            rest = -near.later[near.by_arrival[count]] if count < degree else 0.0
            best = min(best, max(together, rest))
            if together >= best:
                break
        earliest[v] = max(best, last)


@inner
def _in_turn(
    near: OperatorNeighbours, durations: Floats, low: int, degree: int, count: int, number: int
) -> float:
    """Time at which one device has run the `count` latest to arrive, each not before its release;
    `number` is that of this count."""
    clock = 0.0
    for i in range(degree):
        j = near.by_release[i]
        v = near.others[low + j]
        if near.place[j] < count and near.counted[v] != number:  # several tensors of one operator
            near.counted[v] = number
            clock = max(clock, float(near.release[j])) + float(durations[v])
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
