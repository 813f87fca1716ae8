"""Search under a memory limit: Lagrangian relaxation of the limit, then an integer program."""

from __future__ import annotations

from math import inf

from msgspec.structs import replace

from ...question.deadline import Deadline
from .integer import solve_integer
from .network import Network, NetworkSolution
from .search import SearchOptions, fits_integer, minimise

HALVINGS = 12  # bisection steps of the price of a byte


def minimise_in_memory(
    network: Network, gap: float, options: SearchOptions, deadline: Deadline
) -> NetworkSolution:
    """As `minimise`, subject to the network's memory limit.

    A price per byte (Lagrange multiplier) gives a lower bound and solutions that fit; the remaining
    gap is closed by the integer program if the network is small enough.
    """
    if sum(float(b.min()) for b in network.bytes) > network.memory_limit_bytes:
        return NetworkSolution(None, inf, inf)
    answer = minimise(network, gap, options, deadline)
    if (
        answer.assignment is None
        or network.used_bytes(answer.assignment) <= network.memory_limit_bytes
    ):
        return answer
    best = _bisect_price(network, gap, options, deadline, answer)
    if best.bound >= best.objective * (1 - gap) or not fits_integer(network):
        return best
    solution = solve_integer(network, gap, deadline)
    bound = max(solution.bound, best.bound)
    if best.assignment is not None and best.objective <= solution.objective:
        return NetworkSolution(best.assignment, best.objective, min(bound, best.objective))
    return NetworkSolution(solution.assignment, solution.objective, min(bound, solution.objective))


def _bisect_price(
    network: Network,
    gap: float,
    options: SearchOptions,
    deadline: Deadline,
    unlimited: NetworkSolution,
) -> NetworkSolution:
    """Best solution that fits and best Lagrangian bound, by bisection over the price of a byte."""
    assert unlimited.assignment is not None
    assignment: list[int] | None = None
    objective, bound = inf, unlimited.bound
    low, high = 0.0, inf
    price = unlimited.objective / max(network.used_bytes(unlimited.assignment), 1.0)
    for _ in range(HALVINGS):
        seconds = tuple(s + price * b for s, b in zip(network.seconds, network.bytes, strict=True))
        solution = minimise(replace(network, seconds=seconds), gap / 2, options, deadline)
        if solution.assignment is None:
            break
        bound = max(bound, solution.bound - price * network.memory_limit_bytes)
        if network.used_bytes(solution.assignment) <= network.memory_limit_bytes:
            high = price
            if network.cost_seconds(solution.assignment) < objective:
                assignment, objective = (
                    solution.assignment,
                    network.cost_seconds(solution.assignment),
                )
        else:
            low = price
        if bound >= objective * (1 - gap):
            break
        price = 4 * price if high == inf else (low + high) / 2
    return NetworkSolution(assignment, objective, min(bound, objective))
