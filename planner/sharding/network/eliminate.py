"""Exact elimination: a choice is minimised out of all tables it occurs in, the cheapest first.

Each step adds the tables around one choice, keeps the best label for every case of its neighbours
and leaves one smaller table over those. When nothing is left the optimum is known, and walking the
steps backwards reads off the labels. The work is the size of the tables, known before they are made.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import prod

import msgspec
import numpy as np

from .labels import Ints
from .moves import Floats
from .network import Flow, Network

Scope = tuple[int, ...]  # choices, ascending: the dimensions of a table


class Step(msgspec.Struct, frozen=True):
    """One choice minimised out: its best label for every case of the choices in `scope`."""

    choice: int
    scope: Scope
    best: Ints


def eliminate(network: Network, cells: int) -> list[int] | None:
    """The labels of an optimum, or None where tables would have more than `cells` entries in all.

    Memory limits are not looked at.
    """
    sizes = [len(seconds) for seconds in network.seconds]
    order = elimination_order(network, sizes, cells)
    return None if order is None else _Elimination(network).run(order)


def elimination_order(network: Network, sizes: list[int], cells: int) -> list[int] | None:
    """Choices by the size of the table that they need when their turn comes, smallest first.

    `sizes` are numbers of labels; None where all tables have more than `cells` entries.
    """
    scopes = [scope_of(flow) for flow in network.flows]
    near: list[set[int]] = [{choice} for choice in range(len(sizes))]
    for scope in scopes:
        for choice in scope:
            near[choice].update(scope)
    total = sum(prod(sizes[c] for c in scope) for scope in scopes)
    work = [prod([sizes[c] for c in around]) for around in near]
    waiting = [(cost, choice) for choice, cost in enumerate(work)]
    heapify(waiting)
    order: list[int] = []
    while waiting and total <= cells:
        cost, choice = heappop(waiting)
        if cost != work[choice]:
            continue  # it was counted again since
        work[choice] = -1
        total += cost
        order.append(choice)
        rest = near[choice]
        rest.discard(choice)
        for other in rest:
            near[other] |= rest
            near[other].discard(choice)
            again = prod([sizes[c] for c in near[other]])
            if again != work[other]:
                work[other] = again
                heappush(waiting, (again, other))
    return order if total <= cells else None


class _Elimination:
    def __init__(self, network: Network) -> None:
        self.sizes = [len(seconds) for seconds in network.seconds]
        self.tables: dict[int, tuple[Scope, Floats]] = {}
        self.around: list[set[int]] = [set() for _ in self.sizes]
        self.made = 0
        for choice, seconds in enumerate(network.seconds):
            self.add((choice,), seconds)
        for flow in network.flows:
            self.add(scope_of(flow), table_of(flow))

    def run(self, order: list[int]) -> list[int]:
        steps = [self.remove(choice) for choice in order]
        found = [0] * len(self.sizes)
        for step in reversed(steps):
            found[step.choice] = int(step.best[tuple(found[c] for c in step.scope)])
        return found

    def add(self, scope: Scope, table: Floats) -> None:
        self.tables[self.made] = (scope, table)
        for choice in scope:
            self.around[choice].add(self.made)
        self.made += 1

    def remove(self, choice: int) -> Step:
        numbers = sorted(self.around[choice])
        scope = tuple(sorted({c for number in numbers for c in self.tables[number][0]}))
        total = np.zeros((1,) * len(scope))
        for number in numbers:
            known, table = self.tables.pop(number)
            total = total + table.reshape([self.sizes[c] if c in known else 1 for c in scope])
            for other in known:
                self.around[other].discard(number)
        axis = scope.index(choice)
        rest = scope[:axis] + scope[axis + 1 :]
        if rest:
            self.add(rest, total.min(axis=axis))
        return Step(choice, rest, total.argmin(axis=axis))


def scope_of(flow: Flow) -> Scope:
    return tuple(sorted({end.choice for end in flow.ends}))


def table_of(flow: Flow) -> Floats:
    """Seconds of a flow over the labels of its choices, every distinct copy counted once."""
    scope = scope_of(flow)

    def along(choice: int, place: Ints) -> Ints:
        return place.reshape([-1 if c == choice else 1 for c in scope])

    have = along(flow.maker.choice, flow.maker.place)
    wanted = [along(user.choice, user.place) for user in flow.users]
    total = np.zeros((1,) * len(scope))
    for i, want in enumerate(wanted):
        paid = flow.seconds[have, want]
        for earlier in wanted[:i]:
            paid = np.where(earlier == want, 0.0, paid)
        total = total + paid
    sizes = {end.choice: len(end.place) for end in flow.ends}
    return np.broadcast_to(total, [sizes[choice] for choice in scope])
