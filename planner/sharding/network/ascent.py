"""Lower bounds by dual ascent: sequential reweighted message passing (Kolmogorov 2015).

Every edge passes each of its endpoints a potential: the min-marginal of that endpoint's layout. A
node adds up its potentials (its strategies' sums are then lower bounds, up to a constant) and
returns equal shares to the edges that lie ahead. Sweeps alternate forward and backward over the
nodes in program order, and the bound never falls. A strategy whose bound exceeds a known solution
cannot be part of a better one.
"""

from __future__ import annotations

from math import inf

import numpy as np

from .many_consumers import MOST_LAYOUTS, by_layouts, by_shares
from .moves import Floats
from .network import Endpoint, Network, ReshardEdge
from .node_strategies import Ints
from .restrict import restrict


class LayoutGroups:
    """Strategies of one endpoint grouped by layout, for minima per layout."""

    def __init__(self, layout_of: Ints, count: int) -> None:
        self.layout_of, self.count = layout_of, count
        self.order = np.argsort(layout_of, kind="stable")
        ordered = layout_of[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.present = ordered[self.starts]

    def least(self, values: Floats) -> Floats:
        """Minimum of `values` [strategies] per layout, infinite for unused layouts."""
        minimum = np.full(self.count, inf)
        minimum[self.present] = np.minimum.reduceat(values[self.order], self.starts)
        return minimum


class Ascent:
    """Potentials of one network; `bound` in seconds after each `sweep`."""

    def __init__(self, network: Network, initial: list[list[Floats]] | None = None) -> None:
        self.network = network
        self.bound = -inf
        self.edges = [_EdgeState(edge) for edge in network.edges]
        for state, potentials in zip(self.edges, initial or [], strict=False):
            state.potentials = potentials
        self.incident: list[list[tuple[_EdgeState, int]]] = [[] for _ in network.seconds]
        for state in self.edges:
            for number, endpoint in enumerate(state.edge.endpoints):
                self.incident[endpoint.node].append((state, number))

    def sweep(self, forward: bool) -> list[Floats]:
        """One pass; returns per node the excess of each strategy over the node's best one.

        Excess plus the bound before this pass bounds every solution that uses the strategy.
        """
        order = range(len(self.network.seconds))
        excess: list[Floats] = [np.zeros(0)] * len(self.network.seconds)
        bound = 0.0
        for node in order if forward else reversed(order):
            total, least = self.visit(node, forward)
            excess[node] = total - total.min()
            bound += least
        self.bound = max(self.bound, bound)
        return excess

    def decode(self, forward: bool) -> list[int]:
        """Greedy solution: nodes in order take the best strategy given those decided before."""
        order = range(len(self.network.seconds))
        assignment: list[int | None] = [None] * len(self.network.seconds)
        for node in order if forward else reversed(order):
            total = self.network.seconds[node].copy()
            for state, number in self.incident[node]:
                total += state.conditional(number, assignment)[state.groups[number].layout_of]
            assignment[node] = int(total.argmin())
        return [strategy for strategy in assignment if strategy is not None]

    def narrow(self, remaining: list[Ints]) -> Ascent:
        """Ascent of the network restricted to `remaining` strategies, with the same potentials."""
        narrowed = Ascent(
            restrict(self.network, remaining), [s.narrow(remaining) for s in self.edges]
        )
        narrowed.bound = self.bound
        return narrowed

    def visit(self, node: int, forward: bool) -> tuple[Floats, float]:
        """Collect every edge's potential, then return equal shares to the edges ahead."""
        total = self.network.seconds[node].copy()
        ahead, behind = list[tuple[_EdgeState, int, Floats]](), 0
        for state, number in self.incident[node]:
            marginal = state.min_marginal(number)
            total += marginal[state.groups[number].layout_of]
            before, after = state.sides[number] if forward else state.sides[number][::-1]
            behind += before
            if after:
                ahead.append((state, number, marginal))
        reparametrised = total.copy()
        if ahead:
            share = 1.0 / max(len(ahead), behind)
            for state, number, marginal in ahead:
                lent = state.groups[number].least(total) * share
                reparametrised -= lent[state.groups[number].layout_of]
                state.lend(number, marginal, lent)
        return total, float(reparametrised.min())


class _EdgeState:
    """Potentials of one edge, one array per endpoint, and the min-marginals still valid."""

    def __init__(self, edge: ReshardEdge) -> None:
        self.edge = edge
        rows, columns = edge.seconds.shape
        endpoints = edge.endpoints
        self.groups = [
            LayoutGroups(e.layout_of, columns if n else rows) for n, e in enumerate(endpoints)
        ]
        self.potentials = [np.zeros(g.count) for g in self.groups]
        self.cached: list[Floats | None] = [None] * len(endpoints)
        self.sides = [_sides(endpoints, endpoint) for endpoint in endpoints]
        self.absent = [np.full(g.count, inf) for g in self.groups]
        for absent, group in zip(self.absent, self.groups, strict=True):
            absent[group.present] = 0.0

    def min_marginal(self, number: int) -> Floats:
        """Minimum cost of the edge per layout of one endpoint, over all layouts of the others."""
        marginal = self.cached[number]
        if marginal is None:
            prices = [a - g for a, g in zip(self.absent, self.potentials, strict=True)]
            marginal = _least(self.edge.seconds, prices, number)
            self.cached[number] = marginal
        self.potentials[number] = marginal
        self.changed(number)
        return marginal

    def conditional(self, number: int, assignment: list[int | None]) -> Floats:
        """Min-marginal with the already assigned nodes fixed to their strategies."""
        prices, decided = list[Floats](), False
        for n, (endpoint, absent) in enumerate(zip(self.edge.endpoints, self.absent, strict=True)):
            strategy = assignment[endpoint.node]
            if strategy is None or n == number:
                prices.append(absent - self.potentials[n])
            else:
                decided = True
                fixed = np.full(len(absent), inf)
                fixed[endpoint.layout_of[strategy]] = 0.0
                prices.append(fixed)
        marginal = self.cached[number]
        if marginal is not None and not decided:
            return marginal
        return _least(self.edge.seconds, prices, number)

    def lend(self, number: int, marginal: Floats, lent: Floats) -> None:
        """Return a share of the node's total to the edge."""
        self.potentials[number] = np.where(np.isinf(lent), marginal, marginal - lent)
        self.changed(number)

    def narrow(self, remaining: list[Ints]) -> list[Floats]:
        """Potentials of the layouts that remaining strategies use."""
        layouts = [endpoint.layout_of[remaining[endpoint.node]] for endpoint in self.edge.endpoints]
        rows, columns = np.unique(layouts[0]), np.unique(np.concatenate(layouts[1:]))
        return [g[columns if n else rows] for n, g in enumerate(self.potentials)]

    def changed(self, number: int) -> None:
        self.cached = [t if n == number else None for n, t in enumerate(self.cached)]


def _sides(endpoints: tuple[Endpoint, ...], endpoint: Endpoint) -> tuple[bool, bool]:
    """Whether the edge has endpoints at earlier nodes, and at later ones."""
    return any(e.node < endpoint.node for e in endpoints), any(
        e.node > endpoint.node for e in endpoints
    )


def _least(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """Min-marginal of one endpoint: `prices[0]` per row, the others per column."""
    consumers = prices[1:]
    if len(consumers) == 1:
        if number == 0:
            return (seconds + consumers[0]).min(axis=1)
        return (seconds + prices[0][:, None]).min(axis=0)
    if 3 ** len(consumers) > 1 << seconds.shape[1]:
        columns = seconds.shape[1]
        return (by_layouts if columns <= MOST_LAYOUTS else by_shares)(seconds, prices, number)
    every = (1 << len(consumers)) - 1
    if number == 0:
        return _served(seconds, consumers, every)[every]
    others = every & ~(1 << (number - 1))
    served = _served(seconds, consumers, others)
    minimum = np.full(seconds.shape[1], inf)
    shared = others
    while True:  # consumers in `shared` want what this endpoint wants
        alone = prices[0] + served[others & ~shared]
        with_them = sum(
            (consumers[i] for i in range(len(consumers)) if shared >> i & 1), np.zeros(())
        )
        minimum = np.minimum(minimum, (seconds + alone[:, None]).min(axis=0) + with_them)
        if not shared:
            return minimum
        shared = (shared - 1) & others


def _served(seconds: Floats, consumers: list[Floats], every: int) -> dict[int, Floats]:
    """Per subset of `every` (bit set) of consumers: minimum cost of serving them, per row.

    Consumers of the same layout share a copy, so this minimises over partitions of the subset."""
    served: dict[int, Floats] = {0: np.zeros(len(seconds))}
    together: dict[int, Floats] = {}
    for subset in range(1, every + 1):
        if subset & ~every:
            continue
        price = sum((consumers[i] for i in range(len(consumers)) if subset >> i & 1), np.zeros(()))
        together[subset] = (seconds + price).min(axis=1)
        first = subset & -subset
        best, block = together[subset], subset
        while block := (block - 1) & subset:
            if block & first:
                best = np.minimum(best, together[block] + served[subset & ~block])
        served[subset] = best
    return served
