"""Dead-end elimination: drop strategies that another one of the same node dominates.

Changing one node's strategy changes each incident edge by at most the worst case over its other
endpoints. A strategy is dominated if the difference in the node's own seconds covers the sum of
these worst cases; of two that dominate each other the later is dropped.
"""

from __future__ import annotations

import numpy as np

from ...solvers.pareto import undominated
from .moves import Floats
from .network import Network, ReshardEdge
from .node_strategies import Ints
from .restrict import restrict


def prune(network: Network, cells: int) -> tuple[Network, list[Ints]]:
    """The network without dominated strategies, and the remaining strategies per node.

    Worst cases are computed for nodes that need at most `cells` sums; at larger ones a strategy is
    only compared with those that have the same layout on every edge.
    """
    around: list[list[tuple[ReshardEdge, int]]] = [[] for _ in network.seconds]
    for edge in network.edges:
        for number, endpoint in enumerate(edge.endpoints):
            around[endpoint.node].append((edge, number))
    remaining: list[Ints] = []
    for node, seconds in enumerate(network.seconds):
        remaining.append(_undominated(network, node, around[node], np.arange(len(seconds)), cells))
    return restrict(network, remaining), remaining


def _undominated(
    network: Network, node: int, around: list[tuple[ReshardEdge, int]], strategies: Ints, cells: int
) -> Ints:
    seconds, used = network.seconds[node][strategies], network.bytes[node][strategies]
    additions = sum(len(strategies) ** 2 * max(edge.seconds.shape) for edge, _ in around)
    if len(strategies) == 1:
        return strategies
    if additions > cells:
        return strategies[
            _first_of_equal(
                seconds, used, [f.endpoints[n].layout_of[strategies] for f, n in around]
            )
        ]
    # worse[x, y]: what taking y in layout of x costs at most
    worse = seconds[None, :] - seconds[:, None]
    for edge, number in around:
        worse = worse + _worst(edge, number, strategies)
    replaces = (worse <= 0) & (used[None, :] <= used[:, None])
    return strategies[undominated(replaces)]


def _first_of_equal(seconds: Floats, used: Floats, layouts: list[Ints]) -> Ints:
    """Cheapest of each group of strategies with the same layout on every edge."""
    rows = np.stack([*layouts, used.astype(np.int64)], axis=1)
    order = np.lexsort((seconds, *rows.T))
    ordered = rows[order]
    new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
    return np.sort(order[new])


def _worst(edge: ReshardEdge, number: int, strategies: Ints) -> Floats:
    """Largest increase of an edge's cost when one endpoint changes from strategy x to y: [x, y]."""
    layout_of = edge.endpoints[number].layout_of[strategies]
    if number == 0:
        rows = edge.seconds[layout_of]
        growth = (rows[None, :, :] - rows[:, None, :]).max(axis=2)
        return growth if len(edge.consumers) == 1 else np.maximum(growth, 0.0) * len(edge.consumers)
    columns = edge.seconds[:, layout_of]
    if len(edge.consumers) == 1:
        return (columns[:, None, :] - columns[:, :, None]).max(axis=0)
    # the old copy may still be needed, and the new one must be produced
    return np.where(layout_of[:, None] == layout_of[None, :], 0.0, columns.max(axis=0)[None, :])
