"""Local search by simulated annealing over devices and start priorities (Kirkpatrick et al. 1983).

The acceptance threshold is drawn before a neighbour is simulated, so that a simulation stops as
soon as it is too slow. It resumes from the last of a few stored states that the move cannot affect:
nothing changes before the first input of a moved operator is produced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....cost_model.compiled import compiled, inner
from ....cost_model.placement.arrays import (
    Floats,
    GraphArrays,
    Ints,
    MemoryCount,
    Records,
    lifetime_bytes,
    new_count,
    resident_bytes,
)
from ....cost_model.placement.simulate import (
    TIMES,
    PlacedOperators,
    SimulationState,
    Until,
    begin,
    copy_state,
    new_state,
    new_states,
    run,
    state_at,
)
from ..problem import Cooling, Instance, PlacementCandidate, PlacementProblem
from .moves import Blocks, propose, shift, shift_back
from .ranked import places

STATES = 8  # simulation states stored along the current solution
CRITICAL = 0.5  # fraction of moves that start on the critical path
REORDER = 0.3  # fraction of moves that change a priority instead of a device


class AnnealingState(NamedTuple):
    """Current solution, best solution, stored simulation states, and scratch arrays."""

    device: Ints
    key: Floats
    best_device: Ints
    best_key: Floats
    spans: Floats  # 2: current, best
    chain: Ints  # n + 1: length of the critical path, then its operators, last first
    times: Records  # n: of the current solution
    states: SimulationState  # each array with the number of a stored state before its axes
    trial: SimulationState
    chosen: Ints
    undo: Ints
    marked: np.ndarray
    memory: MemoryCount
    nothing: Floats  # n: zeros


def walk_from(
    problem: PlacementProblem, start: PlacementCandidate, blocks: Blocks
) -> AnnealingState:
    """Initial annealing state at a placement, which must fit."""
    n, count = problem.operators, len(blocks.first)
    integers = np.int64
    walk = AnnealingState(
        start.device.copy(),
        places(start.order),
        start.device.copy(),
        places(start.order),
        np.full(2, np.inf),
        np.zeros(n + 1, integers),
        np.zeros(n, TIMES),
        new_states(problem.work, STATES),
        new_state(problem.work),
        np.zeros(count, integers),
        np.zeros(count, integers),
        np.zeros(count, np.bool_),
        new_count(problem.work),
        np.zeros(n),
    )
    begin(problem.work, SimulationState(*(array[0] for array in walk.states)))
    settle(problem.instance, walk, 0)  # finds the makespan,
    settle(problem.instance, walk, 0)  # and now where to store states
    walk.spans[1] = walk.spans[0]
    return walk


@compiled
def settle(instance: Instance, walk: AnnealingState, stored: int) -> None:
    """Simulate the current solution from stored state `stored` on and store the later states."""
    trial = walk.trial
    copy_state(state_at(walk.states, stored), trial)
    span = -1.0
    count = len(walk.states.clock)
    for i in range(stored + 1, count + 1):
        if span < 0.0:
            store = i < count and np.isfinite(walk.spans[0])
            until = walk.spans[0] * i / count if store else np.inf
            placed = PlacedOperators(walk.device, walk.key, False)
            span = run(
                instance.work, placed, instance.mode, trial, Until(walk.nothing, np.inf, until)
            )
        if i < count:
            copy_state(trial, state_at(walk.states, i))
    walk.spans[0] = span
    for v in range(len(walk.times)):
        walk.times[v] = trial.times[v]
    _critical_path(walk.times, walk.chain)


@inner
def _critical_path(times: Records, chain: Ints) -> None:
    """Fill `chain` with the critical path: each operator was started by the end or data of the
    next.
    """
    v, count = 0, 0
    for w in range(len(times)):
        if times[w].end > times[v].end:
            v = w
    while v >= 0:
        count += 1
        chain[count] = v
        v = times[v].cause
    chain[0] = count


@compiled
def anneal(
    instance: Instance, blocks: Blocks, tail: Floats, walk: AnnealingState, cooling: Cooling
) -> None:
    """Take the steps of `cooling`, its temperatures in microseconds."""
    work, (seed, steps, hot, cold) = instance.work, cooling
    np.random.seed(seed)
    rate = (cold / hot) ** (1.0 / steps)
    temperature = hot
    for _ in range(steps):
        limit = walk.spans[0] - temperature * np.log(1.0 - np.random.random())
        v = np.random.randint(len(walk.device))
        if np.random.random() < CRITICAL:
            v = int(walk.chain[1 + np.random.randint(walk.chain[0])])
        if len(work.capacity) == 1 or np.random.random() < REORDER:
            stored = _reorder(instance, tail, walk, v, limit)
        else:
            stored = _move(instance, blocks, tail, walk, v, limit)
        if stored >= 0:
            settle(instance, walk, stored)
            if walk.spans[0] < walk.spans[1]:
                walk.spans[1] = walk.spans[0]
                for w in range(len(walk.device)):
                    walk.best_device[w], walk.best_key[w] = walk.device[w], walk.key[w]
        temperature *= rate


@inner
def _move(
    instance: Instance, blocks: Blocks, tail: Floats, walk: AnnealingState, v: int, limit: float
) -> int:
    """Try to move blocks around `v` to another device. Returns the last stored state that is still
    valid, or -1 if the move was rejected."""
    work = instance.work
    count, target = propose(work, blocks, walk.device, v, walk.marked, walk.chosen)
    shift(blocks, walk.device, walk.chosen, count, target, walk.undo)
    if not instance.train or _resident(work, walk):
        changed = _first_change(work, blocks, walk, count)
        stored = _simulate(instance, tail, walk, limit, changed)
        if stored >= 0:
            return stored
    shift_back(blocks, walk.device, walk.chosen, count, walk.undo)
    return -1


@inner
def _reorder(instance: Instance, tail: Floats, walk: AnnealingState, v: int, limit: float) -> int:
    """Try to run `v` just before or after another operator of its device; returns as `_move`."""
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
    stored = _simulate(instance, tail, walk, limit, _ready(instance.work, walk, v))
    if stored < 0:
        walk.key[v] = old
    return stored


@inner
def _ready(work: GraphArrays, walk: AnnealingState, v: int) -> float:
    """Time at which the last input of `v` is produced; its priority has no effect before."""
    operators, edges, reads, times = work.operators, work.edges, work.reads, walk.times
    ready = 0.0
    for i in range(operators[v].read, operators[v].read_after):
        ready = max(ready, times[edges[reads[i]].source].end)
    return ready


@inner
def _resident(work: GraphArrays, walk: AnnealingState) -> bool:
    resident_bytes(work, walk.device, walk.memory)
    return _fits(work, walk)


@inner
def _fits(work: GraphArrays, walk: AnnealingState) -> bool:
    for d in range(len(work.capacity)):
        if walk.memory.used[d] > work.capacity[d]:
            return False
    return True


@inner
def _first_change(work: GraphArrays, blocks: Blocks, walk: AnnealingState, count: int) -> float:
    """Earliest time at which an input of the moved blocks is produced."""
    operators, edges, reads, times = work.operators, work.edges, work.reads, walk.times
    earliest = np.inf
    for i in range(count):
        block = walk.chosen[i]
        for j in range(blocks.first[block], blocks.first[block + 1]):
            operator = operators[blocks.members[j]]
            if operator.read == operator.read_after:
                return 0.0
            for r in range(operator.read, operator.read_after):
                earliest = min(earliest, times[edges[reads[r]].source].end)
    return earliest


@inner
def _simulate(
    instance: Instance, tail: Floats, walk: AnnealingState, limit: float, changed: float
) -> int:
    """Simulate from the last state before `changed`; returns it, or -1 if rejected."""
    work, mode, train = instance
    stored = len(walk.states.clock) - 1
    while stored > 0 and walk.states.clock[stored, 0].now >= changed:
        stored -= 1
    copy_state(state_at(walk.states, stored), walk.trial)
    placed = PlacedOperators(walk.device, walk.key, False)
    span = run(work, placed, mode, walk.trial, Until(tail, limit, np.inf))
    fast = span <= limit
    if fast and not train:
        lifetime_bytes(work, walk.device, walk.trial.times, walk.trial.slots, walk.memory)
        fast = _fits(work, walk)
    return stored if fast else -1
