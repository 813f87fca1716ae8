"""List schedules: operators by upward rank, each on the device where it ends first."""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints
from ..problem import PlacementCandidate, PlacementProblem, upward_rank
from .ledger import Ledger, excess, inputs_ready, new_ledger, place

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of a transfer's time that counts in the rank
WEIGHTS = (0.0, 0.003, 0.03)  # of memory against time


def ranked(
    problem: PlacementProblem, share: float = 1.0, weight: float = 0.0
) -> PlacementCandidate:
    """One list schedule (HEFT without insertion, Topcuoglu et al. 2002).

    `share`: fraction of every transfer's time in the rank. `weight` penalises full devices: a
    fraction of memory used costs `weight` times that fraction of the total work per device.
    """
    rank = upward_rank(problem, share)
    order = np.lexsort((np.arange(len(rank)), -rank))
    ledger = new_ledger(problem.work)
    price = weight * float(problem.fastest_us.sum()) / problem.devices
    earliest_end(problem.work, ledger, order, problem.instance.mode, price)
    return problem.evaluate_keys("list", ledger.device, places(order))


def places(order: np.ndarray) -> Floats:
    """(n) position of every operator in an order."""
    positions = np.empty(len(order))
    positions[order] = np.arange(len(order))
    return positions


@compiled
def earliest_end(work: GraphArrays, ledger: Ledger, order: Ints, mode: int, price: float) -> None:
    """Place operators in order, each where it ends first among the devices it fits on, or else
    where the shortage is least. `price`: microseconds per fraction of memory used.
    """
    for v in order:
        chosen, best, least, roomy = -1, np.inf, np.inf, -1
        for d in range(len(ledger.used)):
            over = excess(work, ledger, v, d)
            if over < least:
                least, roomy = over, d
            if over > 0.0:
                continue
            ready = inputs_ready(work, ledger, v, d, mode, False)
            end = max(ready, ledger.free[d]) + work.duration_us[v, d]
            end += price * (1.0 + over / work.capacity[d])
            if end < best:
                chosen, best = d, end
        place(work, ledger, v, chosen if chosen >= 0 else roomy, mode, 0.0)
