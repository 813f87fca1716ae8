"""Which values of a function forward saves, so that backward recomputes the rest in least time.

An integer program over the forward operators of the local form: a value that is needed is saved or
its operator runs again, which needs its own operands; saved bytes stay within a budget. Views cost
nothing and share their source's memory; collectives may run again at their price. (Checkmate, Jain et
al. 2020, with one backward and every value computed at most twice.)

    minimise    sum t_j r_j
    subject to  s_v + r_j >= 1    v needed by backward, j its operator
                s_u + r_i >= r_j  u an operand of j, i its operator
                sum bytes_v s_v <= budget
"""

from __future__ import annotations

from ortools.math_opt.python import mathopt

from ...cost_model.operators.function_cost import FunctionTable
from ...ir.lowering.forward_backward import reads, split

TIE = 1e-6  # of the whole time, for the whole bytes: equally fast sets save less


def select(table: FunctionTable, part: float) -> tuple[int, ...]:
    """The values to save in `part` of the bytes between saving the inputs alone (0) and saving all
    that backward reads (1). Values number those of the table's local form."""
    least, most = (_sizes(table, variant) for variant in ("recompute", "keep"))
    budget = sum(least.values()) + part * (sum(most.values()) - sum(least.values()))
    return _Program(table, budget).solve()


def _sizes(table: FunctionTable, variant: str) -> dict[int, int]:
    """Bytes of the storages that a variant saves."""
    local = table.locals[1]
    saved = split(local, "keep" if variant == "keep" else "recompute").saved
    return {table.roots[v]: local.types[table.roots[v]].bytes for v in saved}


class _Program:
    """The integer program; seconds and bytes are scaled to about one."""

    def __init__(self, table: FunctionTable, budget: float) -> None:
        self.table, self.local, self.budget = table, table.locals[1], budget
        self.model = mathopt.Model()
        self.maker = {
            r: j for j, op in enumerate(self.local.forward_ops) for r in op.results if r >= 0
        }
        self.held = {i.value for i in self.local.held()}
        self.saved: dict[int, mathopt.Variable] = {}
        self.again: dict[int, mathopt.Variable] = {}

    def solve(self) -> tuple[int, ...]:
        """The values saved; raises nothing: saving the inputs alone is always within the budget."""
        gradients = {i.gradient for i in self.local.inputs if i.gradient is not None}
        for value in sorted(reads(split(self.local, "keep").backward) | gradients):
            self.require(value, 1.0)
        seconds = {j: self.seconds(j) for j in self.again}
        bytes_ = {v: self.local.types[v].bytes for v in self.saved}
        all_seconds, all_bytes = sum(seconds.values()) or 1.0, sum(bytes_.values()) or 1
        size = mathopt.fast_sum(bytes_[v] / all_bytes * s for v, s in self.saved.items())
        time = mathopt.fast_sum(seconds[j] / all_seconds * r for j, r in self.again.items())
        self.model.add_linear_constraint(size <= self.budget / all_bytes + 1e-9)
        self.model.minimize(time + TIE * size)
        result = mathopt.solve(self.model, mathopt.SolverType.HIGHS)
        assert result.has_primal_feasible_solution()
        values = result.variable_values()
        return tuple(
            sorted(v for v, s in self.saved.items() if values[s] > 0.5 and v in self.maker)
        )

    def require(self, value: int, need: mathopt.Variable | float) -> None:
        """`need` (0 or 1) of a value: it is saved, or its operator runs again."""
        root = self.table.roots[value]
        if root in self.held or (root not in self.maker and root not in self.given()):
            return
        if root not in self.saved:
            self.saved[root] = self.model.add_binary_variable()
        if root not in self.maker:
            self.model.add_linear_constraint(self.saved[root] >= need)
            return
        again = self.run(self.maker[root])
        self.model.add_linear_constraint(self.saved[root] + again >= need)

    def run(self, number: int) -> mathopt.Variable:
        """Whether an operator runs again; its operands must then be at hand."""
        if number not in self.again:
            self.again[number] = self.model.add_binary_variable()
            for operand in self.local.forward_ops[number].operands():
                self.require(operand, self.again[number])
        return self.again[number]

    def given(self) -> set[int]:
        return {i.value for i in self.local.inputs if i.kind in ("activation", "key")}

    def seconds(self, number: int) -> float:
        return self.table.pricer.op(self.local, self.local.forward_ops[number]).seconds
