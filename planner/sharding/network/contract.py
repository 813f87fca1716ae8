"""Exact contraction of nodes with at most two pairwise edges.

A node between two edges becomes one edge between its neighbours (a min-plus product), a leaf is
added to the seconds of its neighbour, and a node with a single strategy fixes a row, a column or a
copy. Contracted nodes are recovered by choosing the best strategy given their neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
import numpy as np

from .moves import Floats
from .network import Endpoint, Network, ReshardEdge
from .node_strategies import Ints

# seconds [layout of the node, layout of the neighbour], the node's layouts, the neighbour
Table = tuple[Floats, Ints, Endpoint]


class ContractedNode(msgspec.Struct, frozen=True):
    """A contracted node: its seconds, and the tables towards its neighbours."""

    node: int
    seconds: Floats
    tables: tuple[Table, ...]

    def best_strategy(self, assignment: list[int]) -> int:
        total = self.seconds
        for table, layout_of, other in self.tables:
            total = total + table[layout_of, other.layout_of[assignment[other.node]]]
        return int(total.argmin())


class ContractedNetwork(msgspec.Struct, frozen=True):
    """The smaller network, the remaining nodes, and the removed ones in order of removal."""

    network: Network
    remaining: tuple[int, ...]
    removed: tuple[ContractedNode, ...]
    nodes: int

    def expand(self, reduced: list[int]) -> list[int]:
        """Assignment of all nodes from one of the remaining nodes."""
        assignment = [0] * self.nodes
        for node, strategy in zip(self.remaining, reduced, strict=True):
            assignment[node] = strategy
        for removed in reversed(self.removed):
            assignment[removed.node] = removed.best_strategy(assignment)
        return assignment


def contract(network: Network, cells: int) -> ContractedNetwork:
    """Contract every node that needs at most `cells` sums; nodes with bytes are left alone."""
    return _Contraction(network, cells).run()


class _Contraction:
    def __init__(self, network: Network, cells: int) -> None:
        self.network, self.cells = network, cells
        self.seconds = list(network.seconds)
        self.edges: dict[int, ReshardEdge] = dict(enumerate(network.edges))
        self.around: list[set[int]] = [set() for _ in self.seconds]
        for number, edge in self.edges.items():
            for endpoint in edge.endpoints:
                self.around[endpoint.node].add(number)
        self.removed: list[ContractedNode] = []
        self.next_edge = len(self.edges)
        self.turns: dict[int, tuple[Floats, Floats]] = {}
        self.products: dict[Hashable, tuple[Floats, Floats, Floats]] = {}

    def run(self) -> ContractedNetwork:
        waiting = list(range(len(self.seconds)))[::-1]
        remaining_nodes = set(waiting)
        while waiting:
            node = waiting.pop()
            if node not in remaining_nodes or not self.may_go(node):
                continue
            self.fix(node)
            tables = self.tables(node)
            if tables is None:
                continue
            remaining_nodes.discard(node)
            waiting += self.remove(node, tables)
        return self.result(sorted(remaining_nodes))

    def may_go(self, node: int) -> bool:
        return not self.network.bytes[node].any()

    def fix(self, node: int) -> None:
        """A consumer with one strategy always needs its copy: charge it to the producer once."""
        if len(self.seconds[node]) > 1:
            return
        for number in sorted(self.around[node]):
            edge = self.edges[number]
            if len(edge.consumers) == 1 or edge.producer.node == node:
                continue
            wanted = sorted({int(u.layout_of[0]) for u in edge.consumers if u.node == node})
            producer, seconds = edge.producer, edge.seconds.copy()
            for want in wanted:
                paid = edge.seconds[:, want][producer.layout_of]
                self.seconds[producer.node] = self.seconds[producer.node] + paid
                seconds[:, want] = 0.0
            consumers = tuple(u for u in edge.consumers if u.node != node)
            self.around[node].discard(number)
            self.edges[number] = ReshardEdge(seconds, producer, consumers)
            if not consumers:
                self.around[producer.node].discard(number)
                del self.edges[number]

    def tables(self, node: int) -> list[Table] | None:
        """The node's edges as tables towards its neighbours; None if it cannot be contracted."""
        tables: list[Table] = []
        for number in sorted(self.around[node]):
            edge = self.edges[number]
            consumer, *others = edge.consumers
            if others or edge.producer.node == consumer.node:
                return None
            if edge.producer.node == node:
                tables.append((edge.seconds, edge.producer.layout_of, consumer))
            else:
                tables.append((self.turned(edge.seconds), consumer.layout_of, edge.producer))
        count = len(self.seconds[node])
        if count == 1 or len(tables) < 2:
            return tables
        (one, _, _), (other, _, _) = tables[:2]
        additions = count * one.shape[1] * other.shape[1]
        return tables if len(tables) == 2 and additions <= self.cells else None

    def turned(self, table: Floats) -> Floats:
        """The transpose; one object per table, kept with it, so that products can be shared."""
        return self.turns.setdefault(id(table), (table, table.T))[1]

    def remove(self, node: int, tables: list[Table]) -> list[int]:
        """Remove a node; returns its neighbours, which may have become contractible."""
        self.removed.append(ContractedNode(node, self.seconds[node], tuple(tables)))
        for number in sorted(self.around[node]):
            for endpoint in self.edges.pop(number).endpoints:
                if endpoint.node != node:
                    self.around[endpoint.node].discard(number)
        self.around[node].clear()
        if len(self.seconds[node]) == 1 or len(tables) < 2:
            for table, layout_of, other in tables:
                least = (table[layout_of] + self.seconds[node][:, None]).min(axis=0)
                if len(tables) > 1:
                    least = least - self.seconds[node][0]
                self.seconds[other.node] = self.seconds[other.node] + least[other.layout_of]
        else:
            self.join(self.seconds[node], tables)
        return [other.node for _, _, other in tables]

    def join(self, seconds: Floats, tables: list[Table]) -> None:
        """Replace a node by an edge between its neighbours: the minimum over its strategies."""
        (one, at_one, remaining_nodes), (two, at_two, right) = tables
        key = (id(one), at_one.tobytes(), seconds.tobytes(), id(two), at_two.tobytes())
        if key not in self.products:
            table = _product(one, at_one, seconds, two, at_two)
            self.products[key] = (table, one, two)  # the factors live on: their ids are in the key
        table = self.products[key][0]
        if remaining_nodes.node == right.node:
            self.seconds[remaining_nodes.node] = (
                self.seconds[remaining_nodes.node]
                + table[remaining_nodes.layout_of, right.layout_of]
            )
            return
        number = self.next_edge = self.next_edge + 1
        self.edges[number] = ReshardEdge(table, remaining_nodes, (right,))
        self.around[remaining_nodes.node].add(number)
        self.around[right.node].add(number)

    def result(self, remaining: list[int]) -> ContractedNetwork:
        number = {node: i for i, node in enumerate(remaining)}

        def endpoint(old: Endpoint) -> Endpoint:
            return Endpoint(number[old.node], old.layout_of)

        edges = tuple(
            ReshardEdge(f.seconds, endpoint(f.producer), tuple(map(endpoint, f.consumers)))
            for _, f in sorted(self.edges.items())
        )
        network = Network(
            tuple(self.seconds[c] for c in remaining),
            tuple(self.network.bytes[c] for c in remaining),
            tuple(self.network.axis_strategies[c] for c in remaining),
            edges,
            self.network.memory_limit_bytes,
        )
        return ContractedNetwork(network, tuple(remaining), tuple(self.removed), len(self.seconds))


def _product(one: Floats, at_one: Ints, seconds: Floats, two: Floats, at_two: Ints) -> Floats:
    """Least of `one[layout_of, remaining_nodes] + seconds + two[layout_of, right]` over the
    strategies between.
    """
    best = np.full((one.shape[1], two.shape[1]), np.inf)
    pairs = at_one * len(two) + at_two
    order = np.lexsort((seconds, pairs))
    _, first = np.unique(pairs[order], return_index=True)
    for strategy in order[first]:
        through = two[at_two[strategy]] + seconds[strategy]
        np.minimum(best, one[at_one[strategy]][:, None] + through[None, :], out=best)
    return best
