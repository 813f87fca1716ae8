"""The network as an integer program in its tight (flow) form, solved by HiGHS through MathOpt.

One unit flows from the producer's layout to each consumer's layout, so the relaxation is rarely
fractional."""

from __future__ import annotations

from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from ...question.deadline import Deadline
from ...solvers.linear_program import LinearProgram, Variable, total
from .network import Network, NetworkSolution, ReshardEdge

SCALE = 1e6  # microseconds: the solver's tolerances are absolute


def solve_integer(network: Network, gap: float, deadline: Deadline) -> NetworkSolution:
    """An assignment within `gap` of the optimum and a proven bound, under the memory limit."""
    return _IntegerProgram(network).solve(gap, deadline)


class _IntegerProgram:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.program = LinearProgram()
        self.terms: list[tuple[Variable, float]] = []
        self.chosen = [self.node(seconds) for seconds in network.seconds]
        for edge in network.edges:
            self.edge(edge)
        if isfinite(network.memory_limit_bytes):
            self.memory()

    def node(self, seconds: NDArray[np.float64]) -> list[Variable]:
        variables = [self.program.binary() for _ in seconds]
        self.program.require(total(variables) == 1)
        self.terms += zip(variables, (float(s) for s in seconds), strict=True)
        return variables

    def by_layout(
        self, node: int, layout_of: NDArray[np.int64], count: int
    ) -> list[list[Variable]]:
        """Variables of a node's strategies grouped by layout."""
        grouped: list[list[Variable]] = [[] for _ in range(count)]
        for variable, where in zip(self.chosen[node], layout_of.tolist(), strict=True):
            grouped[int(where)].append(variable)
        return grouped

    def edge(self, edge: ReshardEdge) -> None:
        """One unit of flow per consumer; a copy costs its largest flow over the consumers."""
        rows, columns = edge.seconds.shape
        have = self.by_layout(edge.producer.node, edge.producer.layout_of, rows)
        copies: dict[tuple[int, int], Variable] = {}
        for consumer in edge.consumers:
            want = self.by_layout(consumer.node, consumer.layout_of, columns)
            moved = {
                (a, b): self.program.real(0.0, 1.0)
                for a in range(rows)
                if have[a]
                for b in range(columns)
                if want[b]
            }
            for a in range(rows):
                flows = [v for (x, _), v in moved.items() if x == a]
                self.balance(flows, have[a])
            for b in range(columns):
                flows = [v for (_, y), v in moved.items() if y == b]
                self.balance(flows, want[b])
            for pair, variable in moved.items():
                if edge.seconds[pair] > 0:
                    self.pay(edge, pair, variable, copies)

    def balance(self, flows: list[Variable], chosen: list[Variable]) -> None:
        if flows or chosen:
            self.program.require(total(flows) - total(chosen) == 0)

    def pay(
        self,
        edge: ReshardEdge,
        pair: tuple[int, int],
        variable: Variable,
        copies: dict[tuple[int, int], Variable],
    ) -> None:
        if len(edge.consumers) == 1:
            self.terms.append((variable, float(edge.seconds[pair])))
            return
        if pair not in copies:
            copies[pair] = self.program.real(0.0, 1.0)
            self.terms.append((copies[pair], float(edge.seconds[pair])))
        self.program.require(copies[pair] >= variable)

    def memory(self) -> None:
        """Memory constraint, scaled by the limit."""
        limit = max(self.network.memory_limit_bytes, 1.0)
        pairs = zip(self.chosen, self.network.bytes, strict=True)
        used = [v * float(b / limit) for vs, bs in pairs for v, b in zip(vs, bs, strict=True) if b]
        self.program.require(total(used) <= self.network.memory_limit_bytes / limit)

    def solve(self, gap: float, deadline: Deadline) -> NetworkSolution:
        self.program.minimise(total(v * (c * SCALE) for v, c in self.terms))
        limit = None if deadline.limit_seconds is None else max(deadline.seconds_left, 0.1)
        solution, bound = self.program.solve(gap, limit)
        if solution is None:
            return NetworkSolution(None, inf, bound / SCALE)
        values = solution.values
        assignment = [max(range(len(vs)), key=lambda k: values[vs[k]]) for vs in self.chosen]
        return NetworkSolution(assignment, self.network.cost_seconds(assignment), bound / SCALE)
