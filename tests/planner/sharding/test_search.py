"""The search finds what trying everything finds, and every switch leaves the optimum alone."""

import sys
from math import inf, isclose
from pathlib import Path

import pytest

from plait.ir.errors import PlaitError
from plait.planner.sharding import price, solve

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases

CASES = 510
SHARES = 6


def problems(share: int):
    """Every problem small enough, in a fixed order, dealt out to the tests."""
    found = seed = 0
    while found < CASES:
        problem = cases.random_problem(seed)
        seed += 1
        if cases.count(problem) <= cases.MOST:
            if found % SHARES == share:
                yield seed - 1, problem
            found += 1


@pytest.mark.parametrize("share", range(SHARES))
def test_equals_brute_force(share):
    for seed, problem in problems(share):
        best = cases.brute_force(problem)
        if best == inf:
            with pytest.raises(PlaitError, match="f: "):
                solve(problem, gap=0.0)
            continue
        made = solve(problem, gap=0.0)
        assert isclose(made.objective, price(problem, made.axes), rel_tol=1e-9), seed
        assert isclose(made.objective, best, rel_tol=1e-6, abs_tol=1e-12), seed
        assert made.bound <= best * (1 + 1e-9), seed
