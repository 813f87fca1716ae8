"""Selective recomputation: choose the values forward saves so that recomputing the rest is fastest.

An integer program over the forward operators of the per-device function: each value that backward
needs is saved, or its operator runs again and needs its own operands; saved bytes stay within a
limit. Views cost nothing and share their source's memory; collectives may run again at their price.
(Checkmate, Jain et al. 2020, with one backward and every value computed at most twice.)

    minimise    sum t_j r_j
    subject to  s_v + r_j >= 1    v needed by backward, j its operator
                s_u + r_i >= r_j  u an operand of j, i its operator
                sum bytes_v s_v <= limit
"""

from __future__ import annotations

from ...cost_model.operators.function_cost import FunctionCostTable
from ...ir.analysis.liveness import read_values
from ...ir.lowering.forward_backward import partition
from ..solvers.linear_program import LinearProgram, Variable, total

TIE_BREAK = 1e-6  # weight of bytes against time: of equally fast sets the smaller is saved


def select_saved(table: FunctionCostTable, fraction: float) -> tuple[int, ...]:
    """Values to save within a memory limit: 0 saves the inputs alone, 1 all that backward reads,
    and `fraction` interpolates the bytes. Values are numbered as in the table's per-device
    function.
    """
    smallest, largest = (_sizes(table, variant) for variant in ("recompute", "keep"))
    limit_bytes = sum(smallest.values()) + fraction * (
        sum(largest.values()) - sum(smallest.values())
    )
    return _RecomputeProgram(table, limit_bytes).solve()


def _sizes(table: FunctionCostTable, variant: str) -> dict[int, int]:
    """Bytes of each storage that a variant saves."""
    local = table.local_functions[1]
    saved = partition(local, "keep" if variant == "keep" else "recompute").saved
    return {table.roots[v]: local.types[table.roots[v]].bytes for v in saved}


class _RecomputeProgram:
    """The integer program; seconds and bytes are scaled to about one."""

    def __init__(self, table: FunctionCostTable, limit_bytes: float) -> None:
        self.table, self.local, self.limit_bytes = table, table.local_functions[1], limit_bytes
        self.program = LinearProgram()
        self.producer = {
            r: j for j, op in enumerate(self.local.forward_ops) for r in op.results if r >= 0
        }
        self.state_values = {i.value for i in self.local.state_inputs()}
        self.saved: dict[int, Variable] = {}
        self.recomputed: dict[int, Variable] = {}

    def solve(self) -> tuple[int, ...]:
        """Saved values; always feasible, since the limit admits saving the inputs alone."""
        gradients = {i.gradient for i in self.local.inputs if i.gradient is not None}
        for value in sorted(read_values(partition(self.local, "keep").backward) | gradients):
            self.require_value(value, 1.0)
        seconds = {j: self.seconds(j) for j in self.recomputed}
        bytes_ = {v: self.local.types[v].bytes for v in self.saved}
        all_seconds, all_bytes = sum(seconds.values()) or 1.0, sum(bytes_.values()) or 1
        size = total(bytes_[v] / all_bytes * s for v, s in self.saved.items())
        time = total(seconds[j] / all_seconds * r for j, r in self.recomputed.items())
        self.program.require(size <= self.limit_bytes / all_bytes + 1e-9)
        self.program.minimise(time + TIE_BREAK * size)
        solution = self.program.solve().solution
        assert solution is not None
        values = solution.values
        return tuple(
            sorted(v for v, s in self.saved.items() if values[s] > 0.5 and v in self.producer)
        )

    def require_value(self, value: int, need: Variable | float) -> None:
        """Require that a value is saved or its operator runs again wherever `need` is 1."""
        root = self.table.roots[value]
        if root in self.state_values or (
            root not in self.producer and root not in self.non_state_inputs()
        ):
            return
        if root not in self.saved:
            self.saved[root] = self.program.binary()
        if root not in self.producer:
            self.program.require(self.saved[root] >= need)
            return
        recomputed = self.run(self.producer[root])
        self.program.require(self.saved[root] + recomputed >= need)

    def run(self, number: int) -> Variable:
        """Variable: does an operator run again? Its operands are then required."""
        if number not in self.recomputed:
            self.recomputed[number] = self.program.binary()
            for operand in self.local.forward_ops[number].operands():
                self.require_value(operand, self.recomputed[number])
        return self.recomputed[number]

    def non_state_inputs(self) -> set[int]:
        return {i.value for i in self.local.inputs if i.kind in ("activation", "key")}

    def seconds(self, number: int) -> float:
        return self.table.pricer.op(self.local, self.local.forward_ops[number]).seconds
