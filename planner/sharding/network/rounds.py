"""Rounds that close the gap: the bound rises by dual ascent, the solution falls by exact looks.

A look is an exact elimination over a few labels of every choice: those that the ascent finds best,
and those that change the best solution on one mesh axis. Labels that cannot be part of a solution
better than wanted are dropped, which makes the bound rise faster and the looks wider.
"""

from __future__ import annotations

import time
from math import inf

import numpy as np
from numpy.typing import NDArray

from .ascent import Ascent
from .eliminate import eliminate, elimination_order
from .labels import Ints
from .moves import Floats
from .network import Network
from .restrict import restrict

LOOK = 1 << 22  # entries of tables in one look
SWEEPS = 8  # per round
ROUNDS = 60
STALLED = 3  # rounds in which neither side moves
STILL = 1e-4  # parts of the objective by which a side must move
SHRINK = 0.9  # parts of the labels that must be left for it to be worth while to drop the others
SLACKS = tuple(0.1 * 0.5**k for k in range(16))  # parts of the bound that a good label may exceed
NOISE = 1e-9  # parts of the objective that are rounding


class Rounds:
    """The gap between the best labels known and the bound, closed from both sides.

    Labels whose bound reaches `cutoff` are dropped: whatever they are part of is no better than what
    is wanted. `names` are the labels left, by their number in the whole network.
    """

    def __init__(self, network: Network, gap: float) -> None:
        self.network, self.gap = network, gap
        self.axes = network.parts[0].shape[1]
        self.ascent = Ascent(network)
        # what a solution with each label costs at least
        self.least: list[Floats] = [np.full(len(seconds), -inf) for seconds in network.seconds]
        self.names: list[Ints] = [np.arange(len(seconds)) for seconds in network.seconds]
        self.labels: list[int] | None = None
        self.objective, self.dropped = inf, inf  # `dropped`: the least that a dropped label bounds
        self.proven = -inf
        # where the last look of each kind started in SLACKS: along an axis, or (last) along all
        self.slack = [0] * (self.axes + 1)
        self.turned = [inf] * self.axes  # objective at which each axis was last looked along
        self.offer(self.ascent.decode(True))

    @property
    def cutoff(self) -> float:
        """A bound that is good enough."""
        return self.objective * (1 - self.gap - NOISE)

    @property
    def bound(self) -> float:
        return min(max(self.ascent.bound, self.proven), self.dropped, self.objective)

    @property
    def closed(self) -> bool:
        return self.bound >= self.cutoff

    def run(self, deadline: float) -> None:
        """Rounds until the gap is closed, nothing moves any more, or time is up."""
        idle = 0
        for _ in range(ROUNDS):
            before = (self.ascent.bound, self.objective)
            self.round()
            if self.closed or time.monotonic() > deadline:
                return
            moved = self.ascent.bound - before[0] + before[1] - self.objective
            idle = 0 if moved > STILL * self.objective else idle + 1
            if idle == STALLED:
                return

    def round(self) -> None:
        for sweep in range(SWEEPS):
            before = self.ascent.bound
            excess = self.ascent.sweep(forward=sweep % 2 == 0)
            for least, above in zip(self.least, excess, strict=True):
                np.maximum(least, before + above, out=least)
        if self.closed:
            return
        self.offer(self.ascent.decode(forward=True))
        self.search(excess)
        if not self.closed:
            self.drop()

    def offer(self, labels: list[int] | None) -> None:
        """Labels of the ascent's network: the best so far if they are better."""
        if labels is None:
            return
        value = self.ascent.network.value(labels)
        if value < self.objective:
            named = zip(self.names, labels, strict=True)
            self.labels, self.objective = [int(names[label]) for names, label in named], value

    def raise_bound(self, bound: float) -> None:
        """What was proven otherwise of the labels left."""
        self.proven = max(self.proven, bound)

    def search(self, excess: list[Floats]) -> None:
        """The best of all solutions made of labels near the bound; and, whenever that is new, of
        those that change it on a single mesh axis, whose labels may lie further from the bound."""
        assert self.labels is not None
        everything = [np.ones(len(names), dtype=bool) for names in self.names]
        self.look(self.axes, excess, everything)
        for axis in range(self.axes) if self.axes > 1 else ():
            if self.turned[axis] > self.objective:
                self.turned[axis] = self.objective
                self.look(axis, excess, self.near(axis))

    def near(self, axis: int) -> list[NDArray[np.bool_]]:
        """Labels that do what the best solution does on all axes but one."""
        assert self.labels is not None
        found = []
        for parts, names, label in zip(self.network.parts, self.names, self.labels, strict=True):
            same = parts[names] == parts[label]
            found.append(same.sum(axis=1) - same[:, axis] == self.axes - 1)
        return found

    def look(self, kind: int, excess: list[Floats], near: list[NDArray[np.bool_]]) -> None:
        """Solve over the labels `near`, as many as can be looked at, those with least excess."""
        assert self.labels is not None
        known = [names == label for names, label in zip(self.names, self.labels, strict=True)]
        for number in range(max(self.slack[kind] - 1, 0), len(SLACKS)):
            most = SLACKS[number] * self.ascent.bound
            good = [n & ((e <= most) | k) for n, e, k in zip(near, excess, known, strict=True)]
            sizes = [int(g.sum()) for g in good]
            if not all(sizes):
                return
            if elimination_order(self.ascent.network, sizes, LOOK) is not None:
                self.slack[kind] = number
                kept = [np.flatnonzero(g) for g in good]
                labels = eliminate(restrict(self.ascent.network, kept), LOOK) or []
                self.offer([int(k[label]) for k, label in zip(kept, labels, strict=True)])
                return

    def drop(self) -> None:
        """Keep labels below the cutoff; where a choice has none, nothing is better than that."""
        kept = [np.flatnonzero(least < self.cutoff) for least in self.least]
        if not all(map(len, kept)):
            self.proven, self.dropped = inf, min(self.dropped, self.cutoff)
        elif sum(map(len, kept)) < SHRINK * sum(map(len, self.least)):
            self.dropped = min(self.dropped, self.cutoff)
            self.ascent = self.ascent.narrow(kept)
            self.names = [names[k] for names, k in zip(self.names, kept, strict=True)]
            self.least = [least[k] for least, k in zip(self.least, kept, strict=True)]
