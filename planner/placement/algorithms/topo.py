"""m-TOPO (Baechi, Jeon et al. 2020): fill one device after another in topological order."""

from __future__ import annotations

import numpy as np
from numba import njit

from ....cost_model.placement.simulate import PARALLEL
from ..problem import Candidate, Problem
from .ledger import excess, new_ledger, place


def topo(problem: Problem) -> Candidate:
    """Every device takes operators up to an equal share of all bytes and the largest operator on
    top, or to its memory where that is less; what is left over goes where least is lacking."""
    work = problem.work
    own = work.operators["persistent"] + work.operators["output"]
    share = own.sum() // problem.devices + (own + work.operators["temporary"]).max()
    ledger = new_ledger(work)
    fill(work, ledger, np.minimum(work.capacity, share))
    return problem.strictly("m-topo", ledger.device, np.arange(problem.operators))


@njit(cache=True)
def fill(work, ledger, cap):
    """Place operators in their order; the device in use changes when the next one does not fit."""
    current = 0
    for v in range(len(work.operators)):
        bound = ledger.units[work.operators[v].unit].device
        d = bound
        while bound < 0 and current < len(cap):
            d = current
            if excess(work, ledger, v, d) <= cap[d] - work.capacity[d]:
                break
            current += 1
        if bound < 0 and current == len(cap):
            d = _roomiest(work, ledger, v)
        place(work, ledger, v, d, PARALLEL, 0.0)


@njit(cache=True)
def _roomiest(work, ledger, v):
    chosen, least = 0, np.inf
    for d in range(len(ledger.used)):
        over = excess(work, ledger, v, d)
        if over < least:
            chosen, least = d, over
    return chosen
