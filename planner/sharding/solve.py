"""Solve a sharding problem to a proven gap."""

from __future__ import annotations

from math import isfinite

import numpy as np
from msgspec.structs import replace

from ...ir.errors import PlaitError
from ..question.deadline import Deadline
from .network.build import build, shardings
from .network.memory import minimise_in_memory
from .network.network import Network
from .network.search import SearchOptions, minimise
from .problem import ShardingProblem, ShardingSolution

GAP = 0.01  # default relative gap: no sharding of the function is better by more


def solve(
    problem: ShardingProblem,
    gap: float = GAP,
    time_limit: float | None = None,
    options: SearchOptions = SearchOptions(),  # noqa: B008  (a frozen value)
) -> ShardingSolution:
    """A sharding within `gap` of the cheapest, or the best found in `time_limit` seconds.

    Raises PlaitError when no assignment satisfies the rules, or none was found in time.
    """
    deadline = Deadline(time_limit)
    built = build(problem)
    network, never = _finite(built.network)
    limited = isfinite(network.memory_limit_bytes)
    answer = (minimise_in_memory if limited else minimise)(network, gap, options, deadline)
    if answer.assignment is None or answer.objective >= never:
        limit = f" within {problem.memory_limit_bytes:.0f} bytes" if limited else ""
        why = "is possible" if answer.bound >= never else "was found"
        raise PlaitError(f"{problem.function.name}: no split over {problem.mesh}{limit} {why}")
    return ShardingSolution(
        shardings(problem, built, answer.assignment), answer.objective, max(answer.bound, 0.0)
    )


def _finite(network: Network) -> tuple[Network, float]:
    """Replace infinite costs by a number that exceeds every feasible solution; also return it."""
    never = 1.0
    for seconds in network.seconds:
        never += float(seconds[np.isfinite(seconds)].max(initial=0.0))
    for edge in network.edges:
        most = float(edge.seconds[np.isfinite(edge.seconds)].max(initial=0.0))
        never += most * len(edge.consumers)

    def number(values: np.ndarray) -> np.ndarray:
        return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, never)

    edges = tuple(replace(edge, seconds=number(edge.seconds)) for edge in network.edges)
    return replace(network, seconds=tuple(map(number, network.seconds)), edges=edges), never
