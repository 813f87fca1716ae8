"""The network as an integer program, in its tight form: one unit flows from where a value lies to
where each user wants it, so that rounding is rarely needed. Solved by HiGHS through MathOpt."""

from __future__ import annotations

import time
from datetime import timedelta
from math import inf, isfinite, isinf

import numpy as np
from ortools.math_opt.python import mathopt

from .network import Answer, Flow, Network

SCALE = 1e6  # microseconds: the solver's tolerances are absolute


def solve_integer(network: Network, gap: float, deadline: float) -> Answer:
    """Labels within `gap` of the best, and a proven bound; the memory limit is kept."""
    return _Program(network).solve(gap, deadline)


class _Program:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.model = mathopt.Model()
        self.terms: list[tuple[mathopt.Variable, float]] = []
        self.chosen = [self.choice(seconds) for seconds in network.seconds]
        for flow in network.flows:
            self.flow(flow)
        if isfinite(network.memory_bytes):
            self.memory()

    def choice(self, seconds: np.ndarray) -> list[mathopt.Variable]:
        made = [self.model.add_variable(lb=0.0, ub=1.0, is_integer=True) for _ in seconds]
        self.model.add_linear_constraint(mathopt.fast_sum(made) == 1)
        self.terms += zip(made, (float(s) for s in seconds), strict=True)
        return made

    def gathered(self, choice: int, place: np.ndarray, count: int) -> list[list[mathopt.Variable]]:
        """The labels of a choice by the layout they stand for."""
        found: list[list[mathopt.Variable]] = [[] for _ in range(count)]
        for variable, where in zip(self.chosen[choice], place, strict=True):
            found[where].append(variable)
        return found

    def flow(self, flow: Flow) -> None:
        """`moved[have, want]` is one unit per user; a copy is paid by its largest flow."""
        rows, columns = flow.seconds.shape
        have = self.gathered(flow.maker.choice, flow.maker.place, rows)
        copies: dict[tuple[int, int], mathopt.Variable] = {}
        for user in flow.users:
            want = self.gathered(user.choice, user.place, columns)
            moved = {
                (a, b): self.model.add_variable(lb=0.0, ub=1.0)
                for a in range(rows)
                if have[a]
                for b in range(columns)
                if want[b]
            }
            for a in range(rows):
                parts = [v for (x, _), v in moved.items() if x == a]
                self.balance(parts, have[a])
            for b in range(columns):
                parts = [v for (_, y), v in moved.items() if y == b]
                self.balance(parts, want[b])
            for pair, variable in moved.items():
                if flow.seconds[pair] > 0:
                    self.pay(flow, pair, variable, copies)

    def balance(self, parts: list[mathopt.Variable], whole: list[mathopt.Variable]) -> None:
        if parts or whole:
            self.model.add_linear_constraint(mathopt.fast_sum(parts) - mathopt.fast_sum(whole) == 0)

    def pay(
        self,
        flow: Flow,
        pair: tuple[int, int],
        variable: mathopt.Variable,
        copies: dict[tuple[int, int], mathopt.Variable],
    ) -> None:
        if len(flow.users) == 1:
            self.terms.append((variable, float(flow.seconds[pair])))
            return
        if pair not in copies:
            copies[pair] = self.model.add_variable(lb=0.0, ub=1.0)
            self.terms.append((copies[pair], float(flow.seconds[pair])))
        self.model.add_linear_constraint(copies[pair] >= variable)

    def memory(self) -> None:
        """Linear memory, in parts of the limit."""
        limit = max(self.network.memory_bytes, 1.0)
        pairs = zip(self.chosen, self.network.bytes, strict=True)
        used = [v * float(b / limit) for vs, bs in pairs for v, b in zip(vs, bs, strict=True) if b]
        self.model.add_linear_constraint(
            mathopt.fast_sum(used) <= self.network.memory_bytes / limit
        )

    def solve(self, gap: float, deadline: float) -> Answer:
        self.model.minimize(mathopt.fast_sum(v * (c * SCALE) for v, c in self.terms))
        limit = (
            None if isinf(deadline) else timedelta(seconds=max(deadline - time.monotonic(), 0.1))
        )
        limits = mathopt.SolveParameters(relative_gap_tolerance=gap, time_limit=limit)
        result = mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=limits)
        bound = result.dual_bound() / SCALE
        if not result.has_primal_feasible_solution():
            return Answer(None, inf, bound)
        values = result.variable_values()
        labels = [max(range(len(vs)), key=lambda k: values[vs[k]]) for vs in self.chosen]
        return Answer(labels, self.network.value(labels), bound)
