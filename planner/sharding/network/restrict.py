"""Restriction of a network to a subset of strategies and the layouts that they use."""

from __future__ import annotations

import numpy as np

from .moves import Floats
from .network import Endpoint, Network, ReshardEdge
from .node_strategies import Ints


def restrict(network: Network, remaining: list[Ints]) -> Network:
    """Network in which node `c` has the strategies `remaining[c]`, in that order."""
    slices: dict[tuple[int, bytes, bytes], Floats] = {}
    return Network(
        tuple(s[k] for s, k in zip(network.seconds, remaining, strict=True)),
        tuple(b[k] for b, k in zip(network.bytes, remaining, strict=True)),
        tuple(p[k] for p, k in zip(network.axis_strategies, remaining, strict=True)),
        tuple(_edge(edge, remaining, slices) for edge in network.edges),
        network.memory_limit_bytes,
    )


def _edge(
    edge: ReshardEdge, remaining: list[Ints], slices: dict[tuple[int, bytes, bytes], Floats]
) -> ReshardEdge:
    """Drop unused rows and columns; equal slices of a shared table stay shared."""
    rows, columns = edge.seconds.shape
    producer, used_rows = _used([edge.producer], remaining, rows)
    consumers, used_columns = _used(list(edge.consumers), remaining, columns)
    seconds = edge.seconds
    if len(used_rows) < rows or len(used_columns) < columns:
        key = (id(seconds), used_rows.tobytes(), used_columns.tobytes())
        if key not in slices:
            slices[key] = seconds[np.ix_(used_rows, used_columns)]
        seconds = slices[key]
    return ReshardEdge(seconds, producer[0], tuple(consumers))


def _used(
    endpoints: list[Endpoint], remaining: list[Ints], count: int
) -> tuple[list[Endpoint], Ints]:
    layouts = [endpoint.layout_of[remaining[endpoint.node]] for endpoint in endpoints]
    mark = np.zeros(count, dtype=bool)
    for layout_of in layouts:
        mark[layout_of] = True
    number = np.cumsum(mark) - 1
    renumbered = [
        Endpoint(endpoint.node, number[p]) for endpoint, p in zip(endpoints, layouts, strict=True)
    ]
    return renumbered, np.flatnonzero(mark)
