"""Mixed-integer linear programs, solved by HiGHS: the typed face of OR-tools' MathOpt."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from math import inf
from typing import Any, NamedTuple

from ortools.math_opt.python import mathopt  # pyright: ignore[reportMissingTypeStubs]

Variable = mathopt.Variable
Linear = mathopt.LinearTypes  # a variable, a number, or a sum of multiples of them


class LinearSolution(NamedTuple):
    """Values of the variables, and the objective that they have."""

    values: dict[Variable, float]
    objective: float


class LinearOutcome(NamedTuple):
    """The best solution found, if any, and a lower bound of the objective."""

    solution: LinearSolution | None
    bound: float


class LinearProgram:
    """Variables, constraints and an objective to minimise; scale them to about one."""

    def __init__(self) -> None:
        self.model: Any = mathopt.Model()

    def real(self, low: float = 0.0, high: float = inf) -> Variable:
        """A real variable within bounds."""
        return self.model.add_variable(lb=low, ub=high)

    def integer(self, low: float, high: float) -> Variable:
        """An integer variable within bounds."""
        return self.model.add_integer_variable(lb=low, ub=high)

    def binary(self) -> Variable:
        """A variable that is 0 or 1."""
        return self.model.add_binary_variable()

    def require(self, constraint: Any) -> None:
        """Add a constraint: a comparison of linear expressions."""
        self.model.add_linear_constraint(constraint)

    def minimise(self, objective: Linear) -> None:
        self.model.minimize(objective)

    def solve(self, gap: float | None = None, seconds: float | None = None) -> LinearOutcome:
        """Solve to a relative gap, within a time limit; to optimality without either. What the solver
        refuses, such as coefficients beyond its range, has no solution."""
        limit = None if seconds is None else timedelta(seconds=seconds)
        parameters = mathopt.SolveParameters(relative_gap_tolerance=gap, time_limit=limit)
        try:
            result = mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=parameters)
        except (AttributeError, RuntimeError, ValueError):  # it fails to say which status it has
            return LinearOutcome(None, -inf)
        bound = result.dual_bound()
        if not result.has_primal_feasible_solution():
            return LinearOutcome(None, bound)
        return LinearOutcome(
            LinearSolution(result.variable_values(), result.objective_value()), bound
        )


def total(terms: Iterable[Linear]) -> Linear:
    """The sum of many terms."""
    return mathopt.fast_sum(terms)
