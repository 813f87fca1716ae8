"""m-ETF and m-SCT: always run what can start first, and keep a device for a favourite child.

Both are from Baechi (Jeon et al. 2020), after Hwang et al. 1989 (earliest task first) and Hanen and
Munier 1995 (small communication times). Time advances by events: the ready operator that can start
earliest on a free device starts there, and no device idles while something could run on it. With
favourites, a free device waits for the favourite child of the operator it ran last, and meanwhile
runs only operators that could start by now on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....cost_model.compiled import compiled, inner
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints
from ....cost_model.placement.simulate import HALF_DUPLEX, PARALLEL
from ..problem import PlacementCandidate, PlacementProblem
from .favourites import favourite_children, relaxed
from .ledger import Ledger, excess, inputs_ready, new_ledger, place

PARALLEL_TRANSFERS, SEQUENTIAL_TRANSFERS = PARALLEL, HALF_DUPLEX


def etf(problem: PlacementProblem, transfers: int = PARALLEL_TRANSFERS) -> PlacementCandidate:
    """m-ETF; `transfers`: link model assumed while placing."""
    nobody = np.full(problem.operators, -1, np.int64)
    return _placed(problem, "m-etf", transfers, nobody)


def sct(
    problem: PlacementProblem,
    transfers: int = PARALLEL_TRANSFERS,
    threshold: float = 0.5,
    apart: list[float] | None = None,
) -> PlacementCandidate:
    """m-SCT; a relaxed variable below `threshold` makes a favourite child. `apart` (m): the relaxed
    variables of the edges, if known."""
    chosen = relaxed(problem) if apart is None else apart
    return _placed(problem, "m-sct", transfers, favourite_children(problem, chosen, threshold))


def _placed(
    problem: PlacementProblem, name: str, transfers: int, favourite: Ints
) -> PlacementCandidate:
    ledger, frontier = new_ledger(problem.work), new_frontier(problem)
    earliest_first(problem.work, ledger, frontier, transfers, favourite)
    return problem.evaluate_order(name, ledger.device, frontier.order)


class Frontier(NamedTuple):
    """Operators on their way to a device, and those that it runs."""

    waiting: Ints  # n: inputs not produced
    ready: Ints  # n: operators whose inputs are all produced, so many as are counted
    there: Floats  # n, k: when those inputs can be on each device
    running: Ints  # k: operator or -1
    last: Ints  # k: the last one, or -1
    order: Ints  # n: operators as they start


def new_frontier(problem: PlacementProblem) -> Frontier:
    """Nothing is placed."""
    n, k = problem.operators, problem.devices
    waiting, ready, order = np.zeros((3, n), np.int64)
    running, last = np.full((2, k), -1, np.int64)
    return Frontier(waiting, ready, np.zeros((n, k)), running, last, order)


@compiled
def earliest_first(
    work: GraphArrays, ledger: Ledger, frontier: Frontier, mode: int, favourite: Ints
) -> None:
    """Place every operator; `frontier.order` receives them as they start. `favourite[v]`: child or -1.

    Operators that fit on no device come last, where the shortage is least.
    """
    waiting, ready, there, running, last, order = frontier
    count, placed, now = 0, 0, 0.0
    for v in range(len(order)):
        waiting[v] = work.operators[v].read_after - work.operators[v].read
        if waiting[v] == 0:
            ready[count] = v
            count += 1
    _look(work, ledger, mode, ready, count, there)
    while placed < len(order):
        count = _finish(work, ledger, frontier, mode, count, now)
        at, d, later = _pick(ledger, frontier, favourite, count, now)
        if at < 0 and later < np.inf:
            now = later
            continue
        if at < 0:
            at, d = _least_excess(work, ledger, ready, count)
        v = ready[at]
        place(work, ledger, v, d, mode, now)
        running[d] = last[d] = order[placed] = v
        placed += 1
        count -= 1
        for i in range(at, count):
            ready[i] = ready[i + 1]
        _look(work, ledger, mode, ready, count, there)


@inner
def _finish(
    work: GraphArrays, ledger: Ledger, frontier: Frontier, mode: int, count: int, now: float
) -> int:
    """Free devices whose operator has ended and list operators that became ready, topologically."""
    waiting, ready, there, running, _, _ = frontier
    for d in range(len(running)):
        v = running[d]
        if v < 0 or ledger.end[v] > now:
            continue
        running[d] = -1
        for e in range(work.operators[v].first, work.operators[v].after):
            w = work.edges[e].target
            waiting[w] -= 1
            if waiting[w] > 0:
                continue
            at = count
            while at > 0 and ready[at - 1] > w:
                ready[at] = ready[at - 1]
                at -= 1
            ready[at] = w
            count += 1
            _look(work, ledger, mode, ready[at:], 1, there)
    return count


@inner
def _look(
    work: GraphArrays, ledger: Ledger, mode: int, ready: Ints, count: int, there: Floats
) -> None:
    """Time at which the inputs of ready operators can be on each device; infinite where unfit."""
    for i in range(count):
        v = ready[i]
        for d in range(there.shape[1]):
            there[v, d] = np.inf
            if excess(work, ledger, v, d) <= 0.0:
                there[v, d] = inputs_ready(work, ledger, v, d, mode, False)


@inner
def _pick(
    ledger: Ledger, frontier: Frontier, favourite: Ints, count: int, now: float
) -> tuple[int, int, float]:
    """(index in `ready` or -1, device, next time to try) of the operator that starts now."""
    _, ready, there, running, last, _ = frontier
    at, chosen, best, later = -1, -1, np.inf, np.inf
    for d in range(len(running)):
        if running[d] >= 0:
            later = min(later, float(ledger.end[running[d]]))
            continue
        child = int(favourite[last[d]]) if last[d] >= 0 else -1
        reserved = child >= 0 and _reserved_for(ledger, ready, count, there, child, d)
        for i in range(count):
            v = ready[i]
            start = max(float(there[v, d]), float(ledger.free[d]))
            if reserved and v != child:
                start = max(start, _everywhere(ledger, there[v]))
            if start > now:
                later = min(later, start)
            elif start < best or (start == best and i < at):
                at, chosen, best = i, d, start
    return at, chosen, later


@inner
def _reserved_for(
    ledger: Ledger, ready: Ints, count: int, there: Floats, child: int, d: int
) -> bool:
    """Whether a favourite child is ready and can start first on device `d`."""
    listed = False
    for i in range(count):
        listed = listed or ready[i] == child
    if not listed or there[child, d] == np.inf:
        return False
    start_here = max(there[child, d], ledger.free[d])
    for other in range(len(ledger.free)):
        if max(there[child, other], ledger.free[other]) < start_here:
            return False
    return True


@inner
def _everywhere(ledger: Ledger, there: Floats) -> float:
    """Time by which an operator could start on every device that it fits on."""
    latest = 0.0
    for d in range(len(there)):
        if there[d] < np.inf:
            latest = max(latest, max(there[d], ledger.free[d]))
    return latest


@inner
def _least_excess(work: GraphArrays, ledger: Ledger, ready: Ints, count: int) -> tuple[int, int]:
    at, chosen, least = 0, 0, np.inf
    for i in range(count):
        for d in range(len(ledger.used)):
            over = excess(work, ledger, ready[i], d)
            if over < least:
                at, chosen, least = i, d, over
    return at, chosen
