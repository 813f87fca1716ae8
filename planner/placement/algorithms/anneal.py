"""Local search by simulated annealing over devices and start priorities (Kirkpatrick et al. 1983).

The threshold of acceptance is drawn before a neighbour is simulated, so that a simulation stops as
soon as it is too slow; and it starts from the last of a few stored states that the move cannot
change: nothing happens differently before the first input of a moved operator is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ....cost_model.placement.arrays import Floats, Ints, Records, lifetime_bytes, resident_bytes
from ....cost_model.placement.simulate import TIMES, State, begin, copy_state, new_state, run
from ..problem import Candidate, Problem
from .moves import Blocks, propose, shift, shift_back
from .ranked import places

STATES = 8  # stored along the current solution
CRITICAL = 0.5  # of the moves start at the chain of operators that decides the makespan
REORDER = 0.3  # of the moves change a priority instead of a device


class Walk(NamedTuple):
    """The current solution, the best one, and scratch."""

    device: Ints
    key: Floats
    best_device: Ints
    best_key: Floats
    spans: Floats  # 2: current, best
    chain: Ints  # n + 1: how many operators decide the makespan, then which
    times: Records  # n: of the current solution
    states: tuple[State, ...]
    trial: State
    chosen: Ints
    undo: Ints
    taken: np.ndarray
    used: Floats
    received: np.ndarray


def walk_from(problem: Problem, start: Candidate, blocks: Blocks) -> Walk:
    """A walk that stands at a placement; it must fit."""
    n, k, count = problem.operators, problem.devices, len(blocks.first)
    integers = np.int64
    walk = Walk(
        start.device.copy(),
        places(start.order),
        start.device.copy(),
        places(start.order),
        np.full(2, np.inf),
        np.zeros(n + 1, integers),
        np.zeros(n, TIMES),
        tuple(new_state(problem.work) for _ in range(STATES)),
        new_state(problem.work),
        np.zeros(count, integers),
        np.zeros(count, integers),
        np.zeros(count, np.bool_),
        np.zeros(k),
        np.zeros((problem.work.tensors, k), np.bool_),
    )
    begin(problem.work, walk.states[0])
    settle(problem.work, problem.mode, walk, 0)  # finds the makespan,
    settle(problem.work, problem.mode, walk, 0)  # and now where to store states
    walk.spans[1] = walk.spans[0]
    return walk


@njit(cache=True)
def settle(work, mode, walk, known):
    """Simulate the current solution from stored state `known` on and store the later ones."""
    trial, nothing = walk.trial, np.zeros(len(walk.device))
    copy_state(walk.states[known], trial)
    span = -1.0
    count = len(walk.states)
    for i in range(known + 1, count + 1):
        if span < 0.0:
            store = i < count and np.isfinite(walk.spans[0])
            until = walk.spans[0] * i / count if store else np.inf
            span = run(work, walk.device, walk.key, False, mode, trial, nothing, np.inf, until)
        if i < count:
            copy_state(trial, walk.states[i])
    walk.spans[0] = span
    walk.times[:] = trial.times
    _decisive(walk.times, walk.chain)


@njit(cache=True)
def _decisive(times, chain):
    """The chain of operators, last first, each started by the end or the data of the next."""
    v, count = 0, 0
    for w in range(len(times)):
        if times[w].end > times[v].end:
            v = w
    while v >= 0:
        count += 1
        chain[count] = v
        v = times[v].cause
    chain[0] = count


@njit(cache=True)
def anneal(work, blocks, mode, train, tail, walk, seed, hot, cold, steps):
    """Take `steps` steps while the temperature falls from `hot` to `cold` (us), geometrically."""
    np.random.seed(seed)
    cooling = (cold / hot) ** (1.0 / steps)
    temperature = hot
    for _ in range(steps):
        limit = walk.spans[0] - temperature * np.log(1.0 - np.random.random())
        v = np.random.randint(len(walk.device))
        if np.random.random() < CRITICAL:
            v = walk.chain[1 + np.random.randint(walk.chain[0])]
        if len(walk.used) == 1 or np.random.random() < REORDER:
            known = _reorder(work, mode, tail, walk, v, limit, train)
        else:
            known = _move(work, blocks, mode, tail, walk, v, limit, train)
        if known >= 0:
            settle(work, mode, walk, known)
            if walk.spans[0] < walk.spans[1]:
                walk.spans[1] = walk.spans[0]
                walk.best_device[:] = walk.device
                walk.best_key[:] = walk.key
        temperature *= cooling


@njit(cache=True)
def _move(work, blocks, mode, tail, walk, v, limit, train):
    """Try blocks around `v` on another device: the stored state that is still true, or -1."""
    count, target = propose(work, blocks, walk.device, v, walk.taken, walk.chosen)
    shift(blocks, walk.device, walk.chosen, count, target, walk.undo)
    if not train or _resident(work, walk):
        changed = _first_change(work, blocks, walk, count)
        known = _tried(work, mode, tail, walk, limit, changed, train)
        if known >= 0:
            return known
    shift_back(blocks, walk.device, walk.chosen, count, walk.undo)
    return -1


@njit(cache=True)
def _reorder(work, mode, tail, walk, v, limit, train):
    """Try `v` just before or after another operator of its device: the state still true, or -1."""
    times, old = walk.times, walk.key[v]
    w = times[v].cause
    if w < 0 or walk.device[w] != walk.device[v] or np.random.random() < 0.5:
        w = np.random.randint(len(walk.device))
        for _ in range(8):
            other = np.random.randint(len(walk.device))
            near = abs(walk.key[other] - old) < abs(walk.key[w] - old)
            if walk.device[other] == walk.device[v] and (near or walk.device[w] != walk.device[v]):
                w = other
    if v == w:
        return -1
    walk.key[v] = walk.key[w] + (2.0 * np.random.random() - 1.0)
    known = _tried(work, mode, tail, walk, limit, _ready(work, walk, v), train)
    if known < 0:
        walk.key[v] = old
    return known


@njit(cache=True)
def _ready(work, walk, v):
    """When the last input of `v` was made: its priority decides nothing before."""
    operators, edges, reads, times = work.operators, work.edges, work.reads, walk.times
    found = 0.0
    for i in range(operators[v].read, operators[v].read_after):
        found = max(found, times[edges[reads[i]].source].end)
    return found


@njit(cache=True)
def _resident(work, walk):
    resident_bytes(work, walk.device, walk.used, walk.received)
    return _fits(work, walk)


@njit(cache=True)
def _fits(work, walk):
    for d in range(len(walk.used)):
        if walk.used[d] > work.capacity[d]:
            return False
    return True


@njit(cache=True)
def _first_change(work, blocks, walk, count):
    """The earliest instant at which the moved blocks matter: an input of theirs is made."""
    operators, edges, reads, times = work.operators, work.edges, work.reads, walk.times
    found = np.inf
    for i in range(count):
        block = walk.chosen[i]
        for j in range(blocks.first[block], blocks.first[block + 1]):
            own = operators[blocks.members[j]]
            if own.read == own.read_after:
                return 0.0
            for r in range(own.read, own.read_after):
                found = min(found, times[edges[reads[r]].source].end)
    return found


@njit(cache=True)
def _tried(work, mode, tail, walk, limit, changed, train):
    """Simulate from the last state before `changed`; -1 when it is too slow or does not fit."""
    known = len(walk.states) - 1
    while known > 0 and walk.states[known].clock[0].now >= changed:
        known -= 1
    copy_state(walk.states[known], walk.trial)
    span = run(work, walk.device, walk.key, False, mode, walk.trial, tail, limit, np.inf)
    fast = span <= limit
    if fast and not train:
        lifetime_bytes(work, walk.device, walk.trial.times, walk.trial.slots, walk.used)
        fast = _fits(work, walk)
    return known if fast else -1
