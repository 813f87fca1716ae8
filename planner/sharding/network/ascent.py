"""Lower bounds by dual ascent: prices move between choices and flows until they agree.

Every flow hands each of its ends a potential: what that end's layout costs, given the best of the
rest. A choice adds up its potentials (then its labels' sums are true lower bounds, up to a constant)
and lends equal parts back to the flows that lie ahead. Sweeps go forward and backward over the
choices in program order; the bound never falls (sequential reweighted message passing, Kolmogorov
2015). Labels whose bound exceeds a known solution can occur in no better one.
"""

from __future__ import annotations

from math import inf

import numpy as np

from .batched_labels import MOST_LAYOUTS, by_layouts, by_shares
from .labels import Ints
from .moves import Floats
from .network import End, Flow, Network
from .restrict import restrict


class Groups:
    """Labels of one end by layout, for minima per layout."""

    def __init__(self, place: Ints, count: int) -> None:
        self.place, self.count = place, count
        self.order = np.argsort(place, kind="stable")
        ordered = place[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.present = ordered[self.starts]

    def least(self, values: Floats) -> Floats:
        """The least value per layout, infinite where no label has it."""
        found = np.full(self.count, inf)
        found[self.present] = np.minimum.reduceat(values[self.order], self.starts)
        return found


class Ascent:
    """Potentials of one network; `bound` in seconds after each `sweep`."""

    def __init__(self, network: Network, given: list[list[Floats]] | None = None) -> None:
        self.network = network
        self.bound = -inf
        self.flows = [_FlowState(flow) for flow in network.flows]
        for state, potentials in zip(self.flows, given or [], strict=False):
            state.given = potentials
        self.ends: list[list[tuple[_FlowState, int]]] = [[] for _ in network.seconds]
        for state in self.flows:
            for number, end in enumerate(state.flow.ends):
                self.ends[end.choice].append((state, number))

    def sweep(self, forward: bool) -> list[Floats]:
        """One pass; per choice what each label costs at least, above the choice's best label.

        With the bound before this pass they bound every solution that takes the label.
        """
        order = range(len(self.network.seconds))
        excess: list[Floats] = [np.zeros(0)] * len(self.network.seconds)
        bound = 0.0
        for choice in order if forward else reversed(order):
            total, least = self.visit(choice, forward)
            excess[choice] = total - total.min()
            bound += least
        self.bound = max(self.bound, bound)
        return excess

    def decode(self, forward: bool) -> list[int]:
        """A solution: choices in order take the best label, given those taken before."""
        order = range(len(self.network.seconds))
        labels: list[int | None] = [None] * len(self.network.seconds)
        for choice in order if forward else reversed(order):
            total = self.network.seconds[choice].copy()
            for state, number in self.ends[choice]:
                total += state.conditional(number, labels)[state.groups[number].place]
            labels[choice] = int(total.argmin())
        return [label for label in labels if label is not None]

    def narrow(self, kept: list[Ints]) -> Ascent:
        """The ascent of the network that keeps these labels, from the same potentials."""
        narrowed = Ascent(restrict(self.network, kept), [s.narrow(kept) for s in self.flows])
        narrowed.bound = self.bound
        return narrowed

    def visit(self, choice: int, forward: bool) -> tuple[Floats, float]:
        """Take every flow's potential, then lend equal parts to the flows ahead."""
        total = self.network.seconds[choice].copy()
        ahead, behind = [], 0
        for state, number in self.ends[choice]:
            taken = state.take(number)
            total += taken[state.groups[number].place]
            before, after = state.sides[number] if forward else state.sides[number][::-1]
            behind += before
            if after:
                ahead.append((state, number, taken))
        kept = total.copy()
        if ahead:
            part = 1.0 / max(len(ahead), behind)
            for state, number, taken in ahead:
                lent = state.groups[number].least(total) * part
                kept -= lent[state.groups[number].place]
                state.lend(number, taken, lent)
        return total, float(kept.min())


class _FlowState:
    """A flow's potentials, one array per end; `fresh` ones are known to be what `take` would give."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        rows, columns = flow.seconds.shape
        ends = flow.ends
        self.groups = [Groups(e.place, columns if n else rows) for n, e in enumerate(ends)]
        self.given = [np.zeros(g.count) for g in self.groups]
        self.taken: list[Floats | None] = [None] * len(ends)
        self.sides = [_sides(ends, end) for end in ends]
        self.absent = [np.full(g.count, inf) for g in self.groups]
        for absent, group in zip(self.absent, self.groups, strict=True):
            absent[group.present] = 0.0

    def take(self, number: int) -> Floats:
        """The least the flow costs per layout of one end, over all layouts of the others."""
        known = self.taken[number]
        if known is None:
            prices = [a - g for a, g in zip(self.absent, self.given, strict=True)]
            known = _least(self.flow.seconds, prices, number)
            self.taken[number] = known
        self.given[number] = known
        self.changed(number)
        return known

    def conditional(self, number: int, labels: list[int | None]) -> Floats:
        """What `take` would find if the choices that have labels could do nothing else."""
        prices, decided = [], False
        for n, (end, absent) in enumerate(zip(self.flow.ends, self.absent, strict=True)):
            label = labels[end.choice]
            if label is None or n == number:
                prices.append(absent - self.given[n])
            else:
                decided = True
                fixed = np.full(len(absent), inf)
                fixed[end.place[label]] = 0.0
                prices.append(fixed)
        known = self.taken[number]
        if known is not None and not decided:
            return known
        return _least(self.flow.seconds, prices, number)

    def lend(self, number: int, taken: Floats, lent: Floats) -> None:
        """Leave a part of the choice's total in the flow."""
        self.given[number] = np.where(np.isinf(lent), taken, taken - lent)
        self.changed(number)

    def narrow(self, kept: list[Ints]) -> list[Floats]:
        """Potentials of the layouts that are still named."""
        places = [end.place[kept[end.choice]] for end in self.flow.ends]
        rows, columns = np.unique(places[0]), np.unique(np.concatenate(places[1:]))
        return [g[columns if n else rows] for n, g in enumerate(self.given)]

    def changed(self, number: int) -> None:
        self.taken = [t if n == number else None for n, t in enumerate(self.taken)]


def _sides(ends: tuple[End, ...], end: End) -> tuple[bool, bool]:
    """Whether the flow has ends at earlier choices, and at later ones."""
    return any(e.choice < end.choice for e in ends), any(e.choice > end.choice for e in ends)


def _least(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """Min-marginal of one end: `prices[0]` per row, the others per column."""
    users = prices[1:]
    if len(users) == 1:
        if number == 0:
            return (seconds + users[0]).min(axis=1)
        return (seconds + prices[0][:, None]).min(axis=0)
    if 3 ** len(users) > 1 << seconds.shape[1]:
        columns = seconds.shape[1]
        return (by_layouts if columns <= MOST_LAYOUTS else by_shares)(seconds, prices, number)
    every = (1 << len(users)) - 1
    if number == 0:
        return _served(seconds, users, every)[every]
    others = every & ~(1 << (number - 1))
    served = _served(seconds, users, others)
    found = np.full(seconds.shape[1], inf)
    shared = others
    while True:  # users in `shared` want what this end wants
        alone = prices[0] + served[others & ~shared]
        with_them = sum((users[i] for i in range(len(users)) if shared >> i & 1), np.zeros(()))
        found = np.minimum(found, (seconds + alone[:, None]).min(axis=0) + with_them)
        if not shared:
            return found
        shared = (shared - 1) & others


def _served(seconds: Floats, users: list[Floats], every: int) -> dict[int, Floats]:
    """Per subset of `every`, as bits: the least that serving those users costs, per row.

    Users that want the same share a copy, so a subset is the best of its partitions."""
    served: dict[int, Floats] = {0: np.zeros(len(seconds))}
    together: dict[int, Floats] = {}
    for subset in range(1, every + 1):
        if subset & ~every:
            continue
        price = sum((users[i] for i in range(len(users)) if subset >> i & 1), np.zeros(()))
        together[subset] = (seconds + price).min(axis=1)
        first = subset & -subset
        best, block = together[subset], subset
        while block := (block - 1) & subset:
            if block & first:
                best = np.minimum(best, together[block] + served[subset & ~block])
        served[subset] = best
    return served
