"""Placements that lack memory: operators leave overfull devices until everything fits.

Simulated annealing on the bytes that are lacking; how long things take is left to the search after.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...cost_model.placement.arrays import lifetime_bytes, resident_bytes
from ...cost_model.placement.simulate import begin, run
from .algorithms.coarse import units
from .algorithms.moves import propose, shift, shift_back
from .algorithms.ranked import places
from .problem import Candidate, Problem

OVERFULL = 0.8  # of the moves start on a device that lacks memory
WARM = 0.02  # of the largest device, as a lack that is first accepted
COLD = 1e-5


def repaired(problem: Problem, broken: Candidate, seed: int, steps: int) -> Candidate:
    """The placement with the least lack met on the way, judged with the same priorities."""
    device, key, blocks = broken.device.copy(), places(broken.order), units(problem)
    relieve(
        problem.work, blocks, problem.mode, problem.train, problem.state, device, key, seed, steps
    )
    return problem.by_key(f"{broken.algorithm}, repaired", device, key)


@njit(cache=True)
def relieve(work, blocks, mode, train, state, device, key, seed, steps):
    """Change `device` until it fits or the steps are done."""
    np.random.seed(seed)
    used = np.zeros(len(work.capacity))
    received = np.zeros((work.tensors, len(used)), np.bool_)
    chosen, undo = np.empty(len(blocks.first), np.int64), np.empty(len(blocks.first), np.int64)
    taken = np.zeros(len(blocks.first), np.bool_)
    least = current = _lack(work, mode, train, state, device, key, used, received)
    best = device.copy()
    for step in range(steps):
        if least == 0.0 or len(used) == 1:
            break
        v = np.random.randint(len(device))
        if np.random.random() < OVERFULL:
            for _ in range(8):
                if used[device[v]] > work.capacity[device[v]]:
                    break
                v = np.random.randint(len(device))
        count, target = propose(work, blocks, device, v, taken, chosen)
        shift(blocks, device, chosen, count, target, undo)
        lack = _lack(work, mode, train, state, device, key, used, received)
        warm = WARM * (COLD / WARM) ** (step / steps) * work.capacity.max()
        if lack <= current - warm * np.log(1.0 - np.random.random()):
            current = lack
            if lack < least:
                least = lack
                best[:] = device
        else:
            shift_back(blocks, device, chosen, count, undo)
            _lack(work, mode, True, state, device, key, used, received)
    device[:] = best


@njit(cache=True)
def _lack(work, mode, train, state, device, key, used, received):
    """Bytes lacking on all devices together; fills `used`."""
    if train:
        resident_bytes(work, device, used, received)
    else:
        begin(work, state)
        run(work, device, key, False, mode, state, np.zeros(len(device)), np.inf, np.inf)
        lifetime_bytes(work, device, state.times, state.slots, used)
    return np.maximum(used - work.capacity, 0.0).sum()
