"""The search finds what trying everything finds, and every switch leaves the optimum alone."""

from functools import cache
from math import inf, isclose

import pytest

from plait.ir.errors import PlaitError
from plait.planner.sharding import SearchOptions, price, solve
from plait.tests.planner.sharding import cases
from plait.tests.sampling import some

CASES = 510
SHARES = 6
SWITCHES = {
    "all": SearchOptions(),
    "no pruning": SearchOptions(prune=False),
    "no contraction": SearchOptions(contract=False),
    "no elimination": SearchOptions(eliminate=False),
    "ascent alone": SearchOptions(prune=False, contract=False, eliminate=False),
    "integer program alone": SearchOptions(False, False, False, False),
}


@cache
def problems(share: int):
    """Every problem small enough, in a fixed order, dealt out to the tests, with its optimum."""
    count, dealt = 0, []
    for seed in range(10 * CASES):
        problem = cases.random_problem(seed)
        if count < CASES and cases.count(problem) <= cases.MOST:
            if count % SHARES == share:
                dealt.append((seed, problem, cases.brute_force(problem)))
            count += 1
    assert count == CASES
    return dealt


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("share", some(range(SHARES), 4))
def test_equals_brute_force(share, switch):
    options = SWITCHES[switch]
    for seed, problem, best in problems(share):
        if best == inf:
            with pytest.raises(PlaitError, match="f: "):
                solve(problem, gap=0.0, options=options)
            continue
        solution = solve(problem, gap=0.0, options=options)
        assert isclose(solution.objective, price(problem, solution.axes), rel_tol=1e-9), seed
        assert isclose(solution.objective, best, rel_tol=1e-6, abs_tol=1e-12), seed
        assert solution.bound <= best * (1 + 1e-9), seed
        assert solution.gap <= 1e-6, seed
