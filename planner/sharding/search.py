"""The search: build the network, make it smaller, solve what is left."""

from __future__ import annotations

from math import isinf

from ...ir.errors import PlaitError
from .build import build, shardings
from .integer import solve_integer
from .problem import ShardingProblem, ShardingSolution

GAP = 0.01  # proven: no split of a function is better by more than this part


def solve(
    problem: ShardingProblem, gap: float = GAP, time_limit: float | None = None
) -> ShardingSolution:
    """A sharding within `gap` of the cheapest, with its proof.

    Raises PlaitError when no assignment keeps the rules.
    """
    built = build(problem)
    answer = solve_integer(built.network, gap, time_limit)
    if answer.labels is None:
        raise PlaitError(f"{problem.function.name}: no split over {problem.mesh} was found")
    objective = built.network.value(answer.labels)
    found = shardings(problem, built, answer.labels)
    bound = objective if isinf(answer.bound) else min(answer.bound, objective)
    return ShardingSolution(found, objective, bound)
