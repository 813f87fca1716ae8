"""m-ETF and m-SCT: always run what can start first, and keep a device for a favourite child.

Both from Baechi (Jeon et al. 2020), on Hwang et al. 1989 (earliest task first) and Hanen and Munier
1995 (small communication times). Time passes; at each instant the ready operator that can start
earliest on a free device starts there, and no device waits while something could run on it. With
favourites a free device waits for the favourite child of what it ran last, and lets only operators
pass that could start by now on every device.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ....cost_model.placement.arrays import Ints
from ....cost_model.placement.simulate import HALF_DUPLEX, PARALLEL
from ..problem import Candidate, Problem
from .favourites import favourite_children, relaxed
from .ledger import excess, inputs_ready, new_ledger, place

PARALLEL_TRANSFERS, SEQUENTIAL_TRANSFERS = PARALLEL, HALF_DUPLEX


def etf(problem: Problem, transfers: int = PARALLEL_TRANSFERS) -> Candidate:
    """m-ETF, with transfers as it assumes them while it places."""
    nobody = np.full(problem.operators, -1, np.int64)
    return _placed(problem, "m-etf", transfers, nobody)


def sct(
    problem: Problem,
    transfers: int = PARALLEL_TRANSFERS,
    threshold: float = 0.5,
    apart: list[float] | None = None,
) -> Candidate:
    """m-SCT; `threshold`: below it a relaxed choice makes a favourite child. `apart`: those choices,
    one per edge, if they are known."""
    chosen = relaxed(problem) if apart is None else apart
    return _placed(problem, "m-sct", transfers, favourite_children(problem, chosen, threshold))


def _placed(problem: Problem, name: str, transfers: int, favourite: Ints) -> Candidate:
    ledger = new_ledger(problem.work)
    order = np.empty(problem.operators, np.int64)
    earliest_first(problem.work, ledger, transfers, favourite, order)
    return problem.strictly(name, ledger.device, order)


@njit(cache=True)
def earliest_first(work, ledger, mode, favourite, order):
    """Place every operator; `order` receives them as they start. `favourite[v]` is a child or -1.

    What fits on no device goes, last, where least is lacking.
    """
    n, k = work.duration_us.shape
    waiting = np.empty(n, np.int64)  # inputs not made; -1 once its end was seen
    ready = np.empty(n, np.int64)  # operators whose inputs are made, and when those are anywhere
    there = np.empty((n, k))
    running = np.full(k, -1)
    last = np.full(k, -1)
    count, placed, now = 0, 0, 0.0
    for v in range(n):
        waiting[v] = work.operators[v].read_after - work.operators[v].read
        if waiting[v] == 0:
            ready[count] = v
            count += 1
    _look(work, ledger, mode, ready, count, there)
    while placed < n:
        count = _finish(work, ledger, mode, running, waiting, ready, count, there, now)
        at, d, later = _pick(ledger, favourite, running, last, ready, count, there, now)
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
        ready[at:count] = ready[at + 1 : count + 1].copy()
        _look(work, ledger, mode, ready, count, there)


@njit(cache=True)
def _finish(work, ledger, mode, running, waiting, ready, count, there, now):
    """Take what ended by now off the devices and list what became ready, in topological order."""
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


@njit(cache=True)
def _look(work, ledger, mode, ready, count, there):
    """When the inputs of ready operators can be on each device; never where it does not fit."""
    for i in range(count):
        v = ready[i]
        for d in range(there.shape[1]):
            there[v, d] = np.inf
            if excess(work, ledger, v, d) <= 0.0:
                there[v, d] = inputs_ready(work, ledger, v, d, mode, False)


@njit(cache=True)
def _pick(ledger, favourite, running, last, ready, count, there, now):
    """(place in the list, device, next instant to look): what starts now, or -1 and when to try."""
    at, chosen, best, later = -1, -1, np.inf, np.inf
    for d in range(len(running)):
        if running[d] >= 0:
            later = min(later, ledger.end[running[d]])
            continue
        child = favourite[last[d]] if last[d] >= 0 else -1
        held = child >= 0 and _held_for(ledger, ready, count, there, child, d)
        for i in range(count):
            v = ready[i]
            start = max(there[v, d], ledger.free[d])
            if held and v != child:
                start = max(start, _everywhere(ledger, there[v]))
            if start > now:
                later = min(later, start)
            elif start < best or (start == best and i < at):
                at, chosen, best = i, d, start
    return at, chosen, later


@njit(cache=True)
def _held_for(ledger, ready, count, there, child, d):
    """Is a favourite child ready, and is this the device where it can start first?"""
    listed = False
    for i in range(count):
        listed = listed or ready[i] == child
    if not listed or there[child, d] == np.inf:
        return False
    own = max(there[child, d], ledger.free[d])
    for other in range(len(ledger.free)):
        if max(there[child, other], ledger.free[other]) < own:
            return False
    return True


@njit(cache=True)
def _everywhere(ledger, there):
    """When an operator could start on every device that it fits on."""
    found = 0.0
    for d in range(len(there)):
        if there[d] < np.inf:
            found = max(found, max(there[d], ledger.free[d]))
    return found


@njit(cache=True)
def _least_excess(work, ledger, ready, count):
    at, chosen, least = 0, 0, np.inf
    for i in range(count):
        for d in range(len(ledger.used)):
            over = excess(work, ledger, ready[i], d)
            if over < least:
                at, chosen, least = i, d, over
    return at, chosen
