"""From a sharding problem to its cheapest sharding, with the proof."""

from __future__ import annotations

import time
from math import inf, isfinite

import numpy as np
from msgspec.structs import replace

from ...ir.errors import PlaitError
from .network.build import build, shardings
from .network.memory import minimise_in_memory
from .network.network import Network
from .network.search import SearchOptions, minimise
from .problem import ShardingProblem, ShardingSolution

GAP = 0.01  # proven: no split of a function is better by more than this part


def solve(
    problem: ShardingProblem,
    gap: float = GAP,
    time_limit: float | None = None,
    options: SearchOptions = SearchOptions(),  # noqa: B008  (a frozen value)
) -> ShardingSolution:
    """A sharding within `gap` of the cheapest, or the best found in `time_limit` seconds.

    Raises PlaitError when no assignment keeps the rules, or none that does was found in time.
    """
    deadline = inf if time_limit is None else time.monotonic() + time_limit
    built = build(problem)
    network, never = _finite(built.network)
    limited = isfinite(network.memory_bytes)
    answer = (minimise_in_memory if limited else minimise)(network, gap, options, deadline)
    if answer.labels is None or answer.objective >= never:
        limit = f" within {problem.memory_bytes:.0f} bytes" if limited else ""
        why = "is possible" if answer.bound >= never else "was found"
        raise PlaitError(f"{problem.function.name}: no split over {problem.mesh}{limit} {why}")
    return ShardingSolution(
        shardings(problem, built, answer.labels), answer.objective, max(answer.bound, 0.0)
    )


def _finite(network: Network) -> tuple[Network, float]:
    """The network with a number for infinity: more than any possible solution costs."""
    never = 1.0
    for seconds in network.seconds:
        never += float(seconds[np.isfinite(seconds)].max(initial=0.0))
    for flow in network.flows:
        most = float(flow.seconds[np.isfinite(flow.seconds)].max(initial=0.0))
        never += most * len(flow.users)

    def number(values: np.ndarray) -> np.ndarray:
        return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, never)

    flows = tuple(replace(flow, seconds=number(flow.seconds)) for flow in network.flows)
    return replace(network, seconds=tuple(map(number, network.seconds)), flows=flows), never
