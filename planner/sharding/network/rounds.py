"""Rounds that close the gap: dual ascent raises the bound, restricted exact searches improve the
solution.

A restricted search eliminates exactly over a few strategies of every node: those with the least
excess in the ascent, and those that differ from the best solution on one mesh axis only. Strategies
that cannot be part of a good enough solution are dropped, which tightens the bound and widens the
searches.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from ...question.deadline import Deadline
from .ascent import Ascent
from .eliminate import eliminate, elimination_order
from .moves import Floats
from .network import Network
from .node_strategies import Ints
from .restrict import restrict

TABLE_CELLS = 1 << 22  # entries of tables in one restricted search
SWEEPS = 8  # per round
ROUNDS = 60
STALLED = 3  # rounds in which neither side moves
STILL = 1e-4  # parts of the objective by which a side must move
SHRINK = (
    0.9  # parts of the strategies that must be left for it to be worth while to drop the others
)
SLACKS = tuple(
    0.1 * 0.5**k for k in range(16)
)  # parts of the bound that a good strategy may exceed
NOISE = 1e-9  # parts of the objective that are rounding


class Rounds:
    """Best assignment known and lower bound, improved from both sides.

    Strategies whose bound reaches `cutoff` are dropped, since no solution with them is good enough.
    `original[node]`: numbers, in the input network, of the node's remaining strategies.
    """

    def __init__(self, network: Network, gap: float) -> None:
        self.network, self.gap = network, gap
        self.axes = network.axis_strategies[0].shape[1]
        self.ascent = Ascent(network)
        # what a solution with each strategy costs at least
        self.least: list[Floats] = [np.full(len(seconds), -inf) for seconds in network.seconds]
        self.original: list[Ints] = [np.arange(len(seconds)) for seconds in network.seconds]
        self.assignment: list[int] | None = None
        self.objective, self.dropped = (
            inf,
            inf,
        )  # `dropped`: the least that a dropped strategy bounds
        self.proven = -inf
        # where the last look of each kind started in SLACKS: along an axis, or (last) along all
        self.slack = [0] * (self.axes + 1)
        self.searched_at = [inf] * self.axes  # objective at which each axis was last looked along
        self.offer(self.ascent.decode(True))

    @property
    def cutoff(self) -> float:
        """Bound at which the gap counts as closed."""
        return self.objective * (1 - self.gap - NOISE)

    @property
    def bound(self) -> float:
        return min(max(self.ascent.bound, self.proven), self.dropped, self.objective)

    @property
    def closed(self) -> bool:
        return self.bound >= self.cutoff

    def run(self, deadline: Deadline) -> None:
        """Run rounds until the gap is closed, progress stalls, or the deadline has passed."""
        idle = 0
        for _ in range(ROUNDS):
            before = (self.ascent.bound, self.objective)
            self.round()
            if self.closed or deadline.passed():
                return
            moved = self.ascent.bound - before[0] + before[1] - self.objective
            idle = 0 if moved > STILL * self.objective else idle + 1
            if idle == STALLED:
                return

    def round(self) -> None:
        excess: list[Floats] = []
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

    def offer(self, assignment: list[int] | None) -> None:
        """Record an assignment of the ascent's network if it is the best so far."""
        if assignment is None:
            return
        value = self.ascent.network.cost_seconds(assignment)
        if value < self.objective:
            named = zip(self.original, assignment, strict=True)
            self.assignment, self.objective = (
                [int(original[strategy]) for original, strategy in named],
                value,
            )

    def raise_bound(self, bound: float) -> None:
        """Record a bound on the remaining strategies that was proven elsewhere."""
        self.proven = max(self.proven, bound)

    def search(self, excess: list[Floats]) -> None:
        """Search over strategies with little excess, then, after each improvement, over those that
        change the best solution on a single mesh axis (with a larger excess allowed)."""
        assert self.assignment is not None
        everything = [np.ones(len(original), dtype=bool) for original in self.original]
        self.restricted_search(self.axes, excess, everything)
        for axis in range(self.axes) if self.axes > 1 else ():
            if self.searched_at[axis] > self.objective:
                self.searched_at[axis] = self.objective
                self.restricted_search(axis, excess, self.neighbourhood(axis))

    def neighbourhood(self, axis: int) -> list[NDArray[np.bool_]]:
        """Per node, a mask of strategies that equal the best solution's on all axes but `axis`."""
        assert self.assignment is not None
        masks: list[NDArray[np.bool_]] = []
        for axis_strategies, original, strategy in zip(
            self.network.axis_strategies, self.original, self.assignment, strict=True
        ):
            same = axis_strategies[original] == axis_strategies[strategy]
            masks.append(same.sum(axis=1) - same[:, axis] == self.axes - 1)
        return masks

    def restricted_search(
        self, kind: int, excess: list[Floats], neighbourhood: list[NDArray[np.bool_]]
    ) -> None:
        """Solve over the strategies `neighbourhood`, as many as can be looked at, those with least
        excess.
        """
        assert self.assignment is not None
        current = [
            original == strategy
            for original, strategy in zip(self.original, self.assignment, strict=True)
        ]
        for number in range(max(self.slack[kind] - 1, 0), len(SLACKS)):
            most = SLACKS[number] * self.ascent.bound
            selected = [
                n & ((e <= most) | k)
                for n, e, k in zip(neighbourhood, excess, current, strict=True)
            ]
            sizes = [int(g.sum()) for g in selected]
            if not all(sizes):
                return
            if elimination_order(self.ascent.network, sizes, TABLE_CELLS) is not None:
                self.slack[kind] = number
                remaining = [np.flatnonzero(g) for g in selected]
                assignment = eliminate(restrict(self.ascent.network, remaining), TABLE_CELLS) or []
                self.offer(
                    [int(k[strategy]) for k, strategy in zip(remaining, assignment, strict=True)]
                )
                return

    def drop(self) -> None:
        """Drop strategies above the cutoff; if a node has none below, the bound is proven."""
        remaining = [np.flatnonzero(least < self.cutoff) for least in self.least]
        if not all(map(len, remaining)):
            self.proven, self.dropped = inf, min(self.dropped, self.cutoff)
        elif sum(map(len, remaining)) < SHRINK * sum(map(len, self.least)):
            self.dropped = min(self.dropped, self.cutoff)
            self.ascent = self.ascent.narrow(remaining)
            self.original = [
                original[k] for original, k in zip(self.original, remaining, strict=True)
            ]
            self.least = [least[k] for least, k in zip(self.least, remaining, strict=True)]
