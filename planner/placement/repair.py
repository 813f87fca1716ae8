"""Repair of placements that exceed memory, by simulated annealing on the shortage in bytes.

The makespan is left to the search that follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...cost_model.compiled import compiled, inner
from ...cost_model.placement.arrays import (
    Floats,
    GraphArrays,
    Ints,
    MemoryCount,
    lifetime_bytes,
    new_count,
    resident_bytes,
)
from ...cost_model.placement.simulate import PlacedOperators, SimulationState, run_to_end
from .algorithms.coarse import units
from .algorithms.moves import Blocks, propose, shift, shift_back
from .algorithms.ranked import places
from .problem import Cooling, Instance, PlacementCandidate, PlacementProblem

OVERFULL = 0.8  # fraction of moves that start on an overfull device
WARM = 0.02  # initial temperature, as a fraction of the largest device's memory
COLD = 1e-5  # final temperature


def repaired(
    problem: PlacementProblem, broken: PlacementCandidate, seed: int, steps: int
) -> PlacementCandidate:
    """The placement with the least shortage met, evaluated with the same priorities."""
    key, blocks = places(broken.order), units(problem)
    given, count = broken.device, len(blocks.first)
    repair = Repair(
        given.copy(),
        given.copy(),
        new_count(problem.work),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.bool_),
    )
    warm = WARM * float(problem.work.capacity.max())
    cooling = Cooling(seed, steps, warm, warm * COLD / WARM)
    relieve(problem.instance, blocks, problem.state, repair, key, cooling)
    return problem.evaluate_keys(f"{broken.algorithm}, repaired", repair.best, key)


class Repair(NamedTuple):
    """A placement that is repaired, the best one met, and scratch."""

    device: Ints  # n
    best: Ints  # n
    memory: MemoryCount
    chosen: Ints  # blocks
    undo: Ints  # blocks
    marked: NDArray[np.bool_]  # blocks


@compiled
def relieve(
    instance: Instance,
    blocks: Blocks,
    state: SimulationState,
    repair: Repair,
    key: Floats,
    cooling: Cooling,
) -> None:
    """Move blocks until everything fits or the steps of `cooling` (temperatures in bytes) are done;
    fills `repair.best`."""
    work, mode, train = instance
    seed, steps, hot, cold = cooling
    device, best, memory, chosen, undo, marked = repair
    used = memory.used
    np.random.seed(seed)
    least_shortage = current = _shortage(work, mode, train, state, repair, key)
    for step in range(steps):
        if least_shortage == 0.0 or len(used) == 1:
            break
        v = np.random.randint(len(device))
        if np.random.random() < OVERFULL:
            for _ in range(8):
                if used[device[v]] > work.capacity[device[v]]:
                    break
                v = np.random.randint(len(device))
        count, target = propose(work, blocks, device, v, marked, chosen)
        shift(blocks, device, chosen, count, target, undo)
        shortage = _shortage(work, mode, train, state, repair, key)
        heat = hot * (cold / hot) ** (step / steps)
        if shortage <= current - heat * np.log(1.0 - np.random.random()):
            current = shortage
            if shortage < least_shortage:
                least_shortage = shortage
                for w in range(len(device)):
                    best[w] = device[w]
        else:
            shift_back(blocks, device, chosen, count, undo)
            _shortage(work, mode, True, state, repair, key)


@inner
def _shortage(
    work: GraphArrays, mode: int, train: bool, state: SimulationState, repair: Repair, key: Floats
) -> float:
    """Shortage in bytes summed over devices; fills `repair.memory`."""
    if train:
        resident_bytes(work, repair.device, repair.memory)
    else:
        run_to_end(work, PlacedOperators(repair.device, key, False), mode, state)
        lifetime_bytes(work, repair.device, state.times, state.slots, repair.memory)
    shortage = 0.0
    for d in range(len(work.capacity)):
        shortage += max(repair.memory.used[d] - work.capacity[d], 0.0)
    return shortage
