"""Repair of placements that exceed memory, by simulated annealing on the shortage in bytes.

The makespan is left to the search that follows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...cost_model.compiled import compiled
from ...cost_model.placement.arrays import Floats, GraphArrays, Ints, lifetime_bytes, resident_bytes
from ...cost_model.placement.simulate import SimulationState, begin, run
from .algorithms.coarse import units
from .algorithms.moves import Blocks, propose, shift, shift_back
from .algorithms.ranked import places
from .problem import PlacementCandidate, PlacementProblem

OVERFULL = 0.8  # fraction of moves that start on an overfull device
WARM = 0.02  # initial temperature, as a fraction of the largest device's memory
COLD = 1e-5  # final temperature


def repaired(
    problem: PlacementProblem, broken: PlacementCandidate, seed: int, steps: int
) -> PlacementCandidate:
    """The placement with the least shortage met, evaluated with the same priorities."""
    device, key, blocks = broken.device.copy(), places(broken.order), units(problem)
    relieve(
        problem.work, blocks, problem.mode, problem.train, problem.state, device, key, seed, steps
    )
    return problem.evaluate_keys(f"{broken.algorithm}, repaired", device, key)


@compiled
def relieve(
    work: GraphArrays,
    blocks: Blocks,
    mode: int,
    train: bool,
    state: SimulationState,
    device: Ints,
    key: Floats,
    seed: int,
    steps: int,
) -> None:
    """Change `device` (n) until it fits or `steps` moves are done."""
    np.random.seed(seed)
    used = np.zeros(len(work.capacity))
    received = np.zeros((work.tensors, len(used)), np.bool_)
    chosen, undo = np.empty(len(blocks.first), np.int64), np.empty(len(blocks.first), np.int64)
    marked = np.zeros(len(blocks.first), np.bool_)
    least_shortage = current = _shortage(work, mode, train, state, device, key, used, received)
    best = device.copy()
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
        shortage = _shortage(work, mode, train, state, device, key, used, received)
        warm = WARM * (COLD / WARM) ** (step / steps) * work.capacity.max()
        if shortage <= current - warm * np.log(1.0 - np.random.random()):
            current = shortage
            if shortage < least_shortage:
                least_shortage = shortage
                best[:] = device
        else:
            shift_back(blocks, device, chosen, count, undo)
            _shortage(work, mode, True, state, device, key, used, received)
    device[:] = best


@compiled
def _shortage(
    work: GraphArrays,
    mode: int,
    train: bool,
    state: SimulationState,
    device: Ints,
    key: Floats,
    used: Floats,
    received: NDArray[np.bool_],
) -> float:
    """Shortage in bytes summed over devices; fills `used` (k)."""
    if train:
        resident_bytes(work, device, used, received)
    else:
        begin(work, state)
        run(work, device, key, False, mode, state, np.zeros(len(device)), np.inf, np.inf)
        lifetime_bytes(work, device, state.times, state.slots, used)
    return np.maximum(used - work.capacity, 0.0).sum()
