"""What every placement algorithm gets, what it gives back, and the one judgement of it."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from ...cost_model.placement.arrays import Floats, Ints, Work, lifetime_bytes, resident_bytes
from ...cost_model.placement.simulate import MODES, State, begin, new_state, run
from ...ir.placement import LinkModel, MemoryRule

EVER = np.inf


class Candidate(NamedTuple):
    """A placement: the device of every operator, and all operators in the order of their start.

    `over_bytes` is what the devices lack together; nothing when the placement fits.
    """

    algorithm: str
    device: Ints
    order: Ints
    makespan_us: float
    over_bytes: float

    @property
    def worth(self) -> tuple[float, float]:
        """Less is better: what fits first, then what is fast."""
        return (self.over_bytes, self.makespan_us)


class Problem:
    """A graph on devices under one link model and one memory rule."""

    def __init__(self, work: Work, link: LinkModel, rule: MemoryRule) -> None:
        self.work, self.link, self.rule = work, link, rule
        self.mode, self.train = MODES[link], rule == "train"
        self.operators, self.devices = work.duration_us.shape
        self.state: State = new_state(work)

    @cached_property
    def fastest_us(self) -> Floats:
        """(n) microseconds of every operator on the device that runs it fastest."""
        return self.work.duration_us.min(axis=1)

    @cached_property
    def tail_us(self) -> Floats:
        """(n) microseconds that must follow the end of an operator: the longest chain after it."""
        return upward_rank(self, 0.0) - self.fastest_us

    @cached_property
    def units(self) -> int:
        """Groups of operators that must share a device; most are one operator."""
        return int(self.work.operators["unit"].max()) + 1

    @cached_property
    def alike(self) -> bool:
        """Are devices and links all the same, so that devices are interchangeable?"""
        work, apart = self.work, ~np.eye(self.devices, dtype=bool)
        rows = (*work.duration_us, work.capacity, *(links[apart] for links in work.links))
        return all(np.all(row == row[0]) for row in rows if len(row))

    def strictly(self, algorithm: str, device: Ints, order: Ints) -> Candidate:
        """Judge a placement whose devices run their operators in a given order."""
        place = np.empty(self.operators)
        for d in range(self.devices):
            mine = order[device[order] == d]
            place[mine] = np.arange(len(mine))
        return self._judged(algorithm, device, place, True)

    def by_key(self, algorithm: str, device: Ints, key: Floats) -> Candidate:
        """Judge a placement whose devices start the ready operator with the least key."""
        return self._judged(algorithm, device, key, False)

    def _judged(self, algorithm: str, device: Ints, key: Floats, strict: bool) -> Candidate:
        begin(self.work, self.state)
        nothing = np.zeros(self.operators)
        span = run(self.work, device, key, strict, self.mode, self.state, nothing, EVER, EVER)
        starts = self.state.times["start"]
        order = np.lexsort((key, self.state.times["end"], starts))
        over = float(np.maximum(self.used_bytes(device) - self.work.capacity, 0.0).sum())
        return Candidate(algorithm, device.copy(), order, float(span), over)

    def used_bytes(self, device: Ints) -> Floats:
        """(k) bytes under the memory rule; `infer` reads the times of the last judgement."""
        used = np.zeros(self.devices)
        if self.train:
            received = np.zeros((self.work.tensors, self.devices), np.bool_)
            resident_bytes(self.work, device, used, received)
        else:
            lifetime_bytes(self.work, device, self.state.times, self.state.slots, used)
        return used


def upward_rank(problem: Problem, share: float) -> Floats:
    """(n) longest chain from an operator's start to the end, with a share of every transfer's mean
    time on the way (Topcuoglu, Hariri and Wu 2002); on the fastest devices where the share is 0."""
    work = problem.work
    rank = problem.fastest_us.copy() if share == 0.0 else work.duration_us.mean(axis=1)
    longest_chains(rank, work.edges["target"], share * mean_transfer_us(work), work.operators)
    return rank


@njit(cache=True)
def longest_chains(rank, targets, transfers_us, operators):
    """Add to every operator's own time (n) the longest chain behind it."""
    for v in range(len(rank) - 1, -1, -1):
        behind = 0.0
        for e in range(operators[v].first, operators[v].after):
            behind = max(behind, transfers_us[e] + rank[targets[e]])
        rank[v] += behind


def serial_us(problem: Problem) -> float:
    """Microseconds that no execution needs more of: one operator or transfer at a time."""
    work = problem.work
    slowest = work.links.max(axis=(1, 2))
    by_formula = slowest[0] + slowest[1] * work.edges["bytes"]
    spent = np.where(work.edges["fixed_us"] >= 0, work.edges["fixed_us"], by_formula)
    return float(work.duration_us.max(axis=1).sum() + spent.sum())


def mean_transfer_us(work: Work) -> Floats:
    """(m) microseconds of every transfer, averaged over pairs of different devices."""
    devices = work.duration_us.shape[1]
    apart = ~np.eye(devices, dtype=bool)
    alpha, beta = (work.links[i][apart].mean() if devices > 1 else 0.0 for i in (0, 1))
    by_formula = np.where(work.edges["bytes"] > 0, alpha + beta * work.edges["bytes"], 0.0)
    return np.where(work.edges["fixed_us"] >= 0, work.edges["fixed_us"], by_formula)
