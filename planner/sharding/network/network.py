"""Network of the sharding search: costs on nodes, and resharding costs on edges between them.

A node is one operator or one boundary value; a strategy of a node is one OpStrategy or placement
per mesh axis. An edge is one value in forward or in backward: the producer's strategy determines
the layout it is produced in, the consumers' strategies the layouts they need, and every distinct
layout needed is paid for once.
"""

from __future__ import annotations

import msgspec

from .moves import Floats
from .node_strategies import Ints


class Endpoint(msgspec.Struct, frozen=True):
    """One node of an edge: `layout_of[strategy]` is the row or column of the edge's table."""

    node: int
    layout_of: Ints


class ReshardEdge(msgspec.Struct, frozen=True):
    """`seconds[source, target]` to reshard a value; consumers of the same layout share one copy."""

    seconds: Floats
    producer: Endpoint
    consumers: tuple[Endpoint, ...]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self.producer, *self.consumers)


class Network(msgspec.Struct, frozen=True):
    """Seconds and bytes of every node's strategies, and the edges between nodes.

    `axis_strategies[node]` [strategies, axes]: number of the strategy used on each mesh axis.
    `memory_limit_bytes` limits the sum of bytes over nodes; bytes are zero where it is infinite.
    """

    seconds: tuple[Floats, ...]
    bytes: tuple[Floats, ...]
    axis_strategies: tuple[Ints, ...]
    edges: tuple[ReshardEdge, ...]
    memory_limit_bytes: float

    def cost_seconds(self, assignment: list[int]) -> float:
        """Seconds of an assignment of one strategy to each node."""
        total = sum(
            float(s[strategy]) for s, strategy in zip(self.seconds, assignment, strict=True)
        )
        for edge in self.edges:
            have = edge.producer.layout_of[assignment[edge.producer.node]]
            for want in sorted({int(u.layout_of[assignment[u.node]]) for u in edge.consumers}):
                total += float(edge.seconds[have, want])
        return total

    def used_bytes(self, assignment: list[int]) -> float:
        """Bytes of an assignment of one strategy to each node."""
        return sum(float(b[strategy]) for b, strategy in zip(self.bytes, assignment, strict=True))


class NetworkSolution(msgspec.Struct, frozen=True):
    """One strategy per node, or None if none was found; no assignment costs less than `bound`."""

    assignment: list[int] | None
    objective: float
    bound: float
