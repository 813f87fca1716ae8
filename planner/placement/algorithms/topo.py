"""m-TOPO (Baechi, Jeon et al. 2020): fill one device after another in topological order."""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled, inner
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints
from ....cost_model.placement.simulate import PARALLEL
from ..problem import PlacementCandidate, PlacementProblem
from .ledger import Ledger, excess, new_ledger, place


def topo(problem: PlacementProblem) -> PlacementCandidate:
    """Fill each device up to an equal share of all bytes plus the largest operator, or up to its
    memory if less; the remainder goes where the shortage is least."""
    work = problem.work
    resident = work.operators["persistent"] + work.operators["output"]
    share = resident.sum() // problem.devices + (resident + work.operators["temporary"]).max()
    ledger = new_ledger(work)
    fill(work, ledger, np.minimum(work.capacity, share))
    order: Ints = np.arange(problem.operators, dtype=np.int64)
    return problem.evaluate_order("m-topo", ledger.device, order)


@compiled
def fill(work: GraphArrays, ledger: Ledger, cap: Floats) -> None:
    """Place operators in topological order; move to the next device when one does not fit."""
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


@inner
def _roomiest(work: GraphArrays, ledger: Ledger, v: int) -> int:
    chosen, least = 0, np.inf
    for d in range(len(ledger.used)):
        over = excess(work, ledger, v, d)
        if over < least:
            chosen, least = d, over
    return chosen
