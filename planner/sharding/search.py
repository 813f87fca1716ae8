"""The search on a network: make it smaller, then close the gap from both sides.

Small networks are eliminated exactly. On others, rounds of dual ascent raise the bound, exact
elimination over the labels that look best lowers the solution, and labels that cannot be part of a
solution better than wanted are dropped, until the gap is closed or an integer program closes it.
"""

from __future__ import annotations

import time
from math import inf

import msgspec
import numpy as np
from numpy.typing import NDArray

from .ascent import Ascent
from .contract import contract
from .eliminate import eliminate
from .integer import solve_integer
from .moves import Floats
from .network import Answer, Network
from .prune import prune
from .restrict import restrict
from .space import Ints

WHOLE = 1 << 18  # entries of tables up to which a network is eliminated at once
PRODUCT = 1 << 22  # sums formed to contract one choice
WORST = 1 << 16  # sums formed to compare one choice's labels
CANDIDATES = 1 << 17  # entries of tables to search among the labels that look best
SWEEPS = 8  # per round
ROUNDS = 60
STALLED = 3  # rounds in which neither side moves
SLACKS = tuple(0.1 * 0.5**k for k in range(16))  # parts of the bound that a good label may exceed
STILL = 1e-4  # parts of the objective by which a side must move
SHRINK = 0.9  # parts of the labels that must be left for it to be worth while to drop the others
INTEGER = 200_000  # entries of flows' tables up to which an integer program is tried
NOISE = 1e-9  # parts of the objective that are rounding


class SearchOptions(msgspec.Struct, frozen=True):
    """Parts of the search; the optimum does not depend on any of them."""

    prune: bool = True
    contract: bool = True
    eliminate: bool = True
    ascend: bool = True


def minimise(network: Network, gap: float, options: SearchOptions, deadline: float) -> Answer:
    """The cheapest labels to within `gap`, or the best known at `deadline`; memory is not limited."""
    core, kept = prune(network, WORST) if options.prune else (network, None)
    small = contract(core, PRODUCT if options.contract else -1)
    answer = _core(small.network, gap, options, deadline)
    if answer.labels is None:
        return answer
    labels = small.labels(answer.labels)
    if kept is not None:
        labels = [int(k[label]) for k, label in zip(kept, labels, strict=True)]
    objective = network.value(labels)
    return Answer(labels, objective, min(answer.bound + objective - answer.objective, objective))


def _core(network: Network, gap: float, options: SearchOptions, deadline: float) -> Answer:
    labels = eliminate(network, WHOLE) if options.eliminate else None
    if labels is not None:
        value = network.value(labels)
        return Answer(labels, value, value)
    if not options.ascend:
        return solve_integer(network, gap, deadline)
    rounds = Rounds(network, gap, options)
    rounds.run(deadline)
    left = rounds.ascent.network
    if not rounds.closed and sum(flow.seconds.size for flow in left.flows) <= INTEGER:
        found = solve_integer(left, gap / 2, deadline)
        rounds.offer(found.labels)
        rounds.raise_bound(found.bound)
    return Answer(rounds.labels, rounds.objective, rounds.bound)


class Rounds:
    """The gap between the best labels known and the bound, closed from both sides.

    Labels whose bound reaches `cutoff` are dropped: whatever they are part of is no better than what
    is wanted. `names` are the labels left, by their number in the whole network.
    """

    def __init__(self, network: Network, gap: float, options: SearchOptions) -> None:
        self.network, self.gap, self.options = network, gap, options
        self.ascent = Ascent(network)
        # what a solution with each label costs at least
        self.least: list[Floats] = [np.full(len(seconds), -inf) for seconds in network.seconds]
        self.names: list[Ints] = [np.arange(len(seconds)) for seconds in network.seconds]
        self.labels: list[int] | None = None
        self.objective, self.dropped = inf, inf  # `dropped`: the least that a dropped label bounds
        self.proven = -inf
        self.slack = 0
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
        """The best of all solutions made of labels near the bound, as many as can be looked at."""
        while self.slack < len(SLACKS):
            most = SLACKS[self.slack] * self.ascent.bound
            kept = [np.flatnonzero((e <= most) | self.known(c)) for c, e in enumerate(excess)]
            labels = eliminate(restrict(self.ascent.network, kept), CANDIDATES)
            if labels is not None:
                self.offer([int(k[label]) for k, label in zip(kept, labels, strict=True)])
                return
            self.slack += 1

    def known(self, choice: int) -> NDArray[np.bool_]:
        """Whether each label left is the best solution's."""
        assert self.labels is not None
        return self.names[choice] == self.labels[choice]

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
