"""Input and output of every placement algorithm, and the evaluation that they share."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...cost_model.compiled import compiled
from ...cost_model.placement.arrays import (
    Floats,
    GraphArrays,
    Ints,
    MemoryCount,
    Records,
    lifetime_bytes,
    new_count,
    resident_bytes,
)
from ...cost_model.placement.simulate import (
    MODES,
    PlacedOperators,
    SimulationState,
    new_state,
    run_to_end,
)
from ...ir.plan.placement import LinkModel, MemoryRule


class PlacementCandidate(NamedTuple):
    """A placement: the device of every operator (n), and all operators in order of their start (n).

    `over_bytes`: memory shortage summed over devices; 0 when the placement fits.
    """

    algorithm: str
    device: Ints
    order: Ints
    makespan_us: float
    over_bytes: float

    @property
    def sort_key(self) -> tuple[float, float]:
        """Sort key, less is better: memory shortage first, then makespan."""
        return (self.over_bytes, self.makespan_us)


class Instance(NamedTuple):
    """What compiled searches know of a problem: `mode` of transfers, and the memory rule."""

    work: GraphArrays
    mode: int
    train: bool


class Cooling(NamedTuple):
    """A local search of `steps` steps, its temperature falling geometrically from hot to cold."""

    seed: int
    steps: int
    hot: float
    cold: float


class PlacementProblem:
    """A graph of n operators on k devices under one link model and one memory rule."""

    def __init__(self, work: GraphArrays, link: LinkModel, rule: MemoryRule) -> None:
        self.work = work
        self.link: LinkModel = link
        self.rule: MemoryRule = rule
        self.train = rule == "train"
        self.instance = Instance(work, MODES[link], self.train)
        self.operators, self.devices = work.duration_us.shape
        self.state: SimulationState = new_state(work)
        self.memory: MemoryCount = new_count(work)

    @cached_property
    def fastest_us(self) -> Floats:
        """(n) microseconds of every operator on its fastest device."""
        return self.work.duration_us.min(axis=1)

    @cached_property
    def tail_us(self) -> Floats:
        """(n) microseconds of the longest chain of successors after an operator's end."""
        return upward_rank(self, 0.0) - self.fastest_us

    @cached_property
    def units(self) -> int:
        """Number of colocation units: groups of operators that must share a device."""
        return int(self.work.operators["unit"].max()) + 1

    @cached_property
    def uniform(self) -> bool:
        """Whether all devices and links are equal, so that devices are interchangeable."""
        work, apart = self.work, ~np.eye(self.devices, dtype=bool)
        rows = (*work.duration_us, work.capacity, *(links[apart] for links in work.links))
        return all(np.all(row == row[0]) for row in rows if len(row))

    def evaluate_order(self, algorithm: str, device: Ints, order: Ints) -> PlacementCandidate:
        """Evaluate a placement whose devices run their operators in a given order."""
        place = np.empty(self.operators)
        for d in range(self.devices):
            mine = order[device[order] == d]
            place[mine] = np.arange(len(mine))
        return self._evaluate(algorithm, device, place, True)

    def evaluate_keys(self, algorithm: str, device: Ints, key: Floats) -> PlacementCandidate:
        """Evaluate a placement whose devices start the ready operator with the least key."""
        return self._evaluate(algorithm, device, key, False)

    def _evaluate(
        self, algorithm: str, device: Ints, key: Floats, strict: bool
    ) -> PlacementCandidate:
        span = run_to_end(
            self.work, PlacedOperators(device, key, strict), self.instance.mode, self.state
        )
        starts = self.state.times["start"]
        order = np.lexsort((key, self.state.times["end"], starts))
        over = float(np.maximum(self.used_bytes(device) - self.work.capacity, 0.0).sum())
        return PlacementCandidate(algorithm, device.copy(), order, float(span), over)

    def used_bytes(self, device: Ints) -> Floats:
        """(k) bytes under the memory rule; `infer` reads the times of the last evaluation."""
        if self.train:
            resident_bytes(self.work, device, self.memory)
        else:
            lifetime_bytes(self.work, device, self.state.times, self.state.slots, self.memory)
        return self.memory.used.copy()


def upward_rank(problem: PlacementProblem, share: float) -> Floats:
    """(n) longest chain in microseconds from an operator's start to the end, counting `share` of
    every transfer's mean time (Topcuoglu, Hariri and Wu 2002); on the fastest devices where it
    is 0.
    """
    work = problem.work
    rank = problem.fastest_us.copy() if share == 0.0 else work.duration_us.mean(axis=1)
    longest_chains(rank, work.edges["target"], share * mean_transfer_us(work), work.operators)
    return rank


@compiled
def longest_chains(rank: Floats, targets: Ints, transfers_us: Floats, operators: Records) -> None:
    """Add to every operator's own time in `rank` (n) the longest chain of its successors."""
    for v in range(len(rank) - 1, -1, -1):
        behind = 0.0
        for e in range(operators[v].first, operators[v].after):
            behind = max(behind, transfers_us[e] + rank[targets[e]])
        rank[v] += behind


def serial_us(problem: PlacementProblem) -> float:
    """Upper bound on the makespan in microseconds: one operator or transfer at a time."""
    work = problem.work
    slowest = work.links.max(axis=(1, 2))
    by_formula: Floats = slowest[0] + slowest[1] * work.edges["bytes"]
    fixed_us: Floats = work.edges["fixed_us"]
    spent: Floats = np.where(fixed_us >= 0, fixed_us, by_formula)
    return float(work.duration_us.max(axis=1).sum() + spent.sum())


def mean_transfer_us(work: GraphArrays) -> Floats:
    """(m) microseconds of every transfer, averaged over pairs of different devices."""
    devices = work.duration_us.shape[1]
    apart = ~np.eye(devices, dtype=bool)
    alpha, beta = (work.links[i][apart].mean() if devices > 1 else 0.0 for i in (0, 1))
    by_formula = np.where(work.edges["bytes"] > 0, alpha + beta * work.edges["bytes"], 0.0)
    return np.where(work.edges["fixed_us"] >= 0, work.edges["fixed_us"], by_formula)
