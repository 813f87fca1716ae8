"""Exact variable elimination: minimise one node after the other out of the cost tables, cheapest
first.

Each step adds the tables that contain a node, records the best strategy for every combination of
its neighbours and leaves one table over those. Walking the steps backwards reads off the optimum.
The work is the size of the tables, which is known in advance.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import prod

import msgspec
import numpy as np

from .moves import Floats
from .network import Network, ReshardEdge
from .node_strategies import Ints

Scope = tuple[int, ...]  # nodes, ascending: the dimensions of a table


class EliminationStep(msgspec.Struct, frozen=True):
    """An eliminated node: its best strategy for every combination of the nodes in `scope`."""

    node: int
    scope: Scope
    best: Ints


def eliminate(network: Network, cells: int) -> list[int] | None:
    """An optimal assignment, or None where tables would have more than `cells` entries in all.

    Ignores memory limits.
    """
    sizes = [len(seconds) for seconds in network.seconds]
    order = elimination_order(network, sizes, cells)
    return None if order is None else _Elimination(network).run(order)


def elimination_order(network: Network, sizes: list[int], cells: int) -> list[int] | None:
    """Greedy elimination order: the node whose table is smallest at that point first.

    `sizes` are numbers of strategies; None where all tables have more than `cells` entries.
    """
    scopes = [scope_of(edge) for edge in network.edges]
    near: list[set[int]] = [{node} for node in range(len(sizes))]
    for scope in scopes:
        for node in scope:
            near[node].update(scope)
    total = sum(prod(sizes[c] for c in scope) for scope in scopes)
    work = [prod([sizes[c] for c in around]) for around in near]
    waiting = [(cost, node) for node, cost in enumerate(work)]
    heapify(waiting)
    order: list[int] = []
    while waiting and total <= cells:
        cost, node = heappop(waiting)
        if cost != work[node]:
            continue  # it was counted again since
        work[node] = -1
        total += cost
        order.append(node)
        rest = near[node]
        rest.discard(node)
        for other in rest:
            near[other] |= rest
            near[other].discard(node)
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
        self.next_table = 0
        for node, seconds in enumerate(network.seconds):
            self.add((node,), seconds)
        for edge in network.edges:
            self.add(scope_of(edge), table_of(edge))

    def run(self, order: list[int]) -> list[int]:
        steps = [self.remove(node) for node in order]
        assignment = [0] * len(self.sizes)
        for step in reversed(steps):
            assignment[step.node] = int(step.best[tuple(assignment[c] for c in step.scope)])
        return assignment

    def add(self, scope: Scope, table: Floats) -> None:
        """Add a table. Nodes with a single strategy have no dimension: numpy allows 64 at most."""
        scope = tuple(node for node in scope if self.sizes[node] > 1)
        table = table.reshape([self.sizes[node] for node in scope])
        self.tables[self.next_table] = (scope, table)
        for node in scope:
            self.around[node].add(self.next_table)
        self.next_table += 1

    def remove(self, node: int) -> EliminationStep:
        if self.sizes[node] == 1:
            return EliminationStep(node, (), np.zeros((), np.int64))
        numbers = sorted(self.around[node])
        scope = tuple(sorted({c for number in numbers for c in self.tables[number][0]}))
        total = np.zeros((1,) * len(scope))
        for number in numbers:
            table_scope, table = self.tables.pop(number)
            total = total + table.reshape([self.sizes[c] if c in table_scope else 1 for c in scope])
            for other in table_scope:
                self.around[other].discard(number)
        axis = scope.index(node)
        rest = scope[:axis] + scope[axis + 1 :]
        if rest:
            self.add(rest, total.min(axis=axis))
        return EliminationStep(node, rest, total.argmin(axis=axis))


def scope_of(edge: ReshardEdge) -> Scope:
    return tuple(sorted({endpoint.node for endpoint in edge.endpoints}))


def table_of(edge: ReshardEdge) -> Floats:
    """Seconds of an edge over the strategies of its nodes, every distinct copy counted once; nodes
    with a single strategy have no dimension."""
    sizes = {endpoint.node: len(endpoint.layout_of) for endpoint in edge.endpoints}
    scope = [node for node in scope_of(edge) if sizes[node] > 1]

    def along(node: int, layout_of: Ints) -> Ints:
        return layout_of.reshape([sizes[c] if c == node else 1 for c in scope])

    have = along(edge.producer.node, edge.producer.layout_of)
    wanted = [along(consumer.node, consumer.layout_of) for consumer in edge.consumers]
    total = np.zeros((1,) * len(scope))
    for i, want in enumerate(wanted):
        paid = edge.seconds[have, want]
        for earlier in wanted[:i]:
            paid = np.where(earlier == want, 0.0, paid)
        total = total + paid
    return np.broadcast_to(total, [sizes[node] for node in scope])
