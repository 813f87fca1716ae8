"""Feasibility of memory: assign operators to devices under the memory rule alone, by CP-SAT.

Integers are rounded towards an easier problem, so that infeasibility is a proof.
"""

from __future__ import annotations

from math import fsum

import numpy as np
from ortools.sat.python import cp_model

from ...cost_model.placement.arrays import Ints
from ...ir.plan.placement import PlacementGraph, PlacementTarget
from ..solvers.constraint_program import only_if
from .problem import PlacementProblem

MEMORY_UNITS = 2**30  # units of memory in the largest device
SEED = 1
ROUNDING = 1e-12  # of sums of bytes


def always_fits(graph: PlacementGraph, target: PlacementTarget) -> bool:
    """Whether every device has room for all operators and for a copy of what every edge carries."""
    resident = fsum(n.mem_persistent + n.mem_output for n in graph.nodes)
    temporary = max((n.mem_temporary for n in graph.nodes), default=0.0)
    total = resident + temporary + fsum(e.bytes for e in graph.edges)
    return total <= min(d.memory_bytes for d in target.devices)


class PackingModel:
    """The model: `at[v][d]`: operator `v` is on device `d`; `copies[t, d]`: tensor `t` is sent to
    `d`.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem, self.work = problem, problem.work
        self.model = cp_model.CpModel()
        self.devices = range(problem.devices)
        largest = max(float(self.work.capacity.max()), 1e-9)
        self.unit = 2.0 ** np.ceil(
            np.log2(largest / MEMORY_UNITS)
        )  # bytes; a power of two, so that integers stay integers
        self.size = np.full(self.work.tensors, np.inf)  # bytes; the least where edges disagree
        np.minimum.at(self.size, self.work.edges["tensor"], self.work.edges["bytes"])
        self.at = self.choices()
        self.copies: dict[tuple[int, int], cp_model.IntVar] = {}
        for edge in self.work.edges:
            for d in self.devices:
                self.copy(int(edge["tensor"]), int(edge["source"]), int(edge["target"]), d)
        self.memory()

    def choices(self) -> list[list[cp_model.IntVar]]:
        """Per operator one variable per device; operators of a unit share theirs. Symmetry breaking
        for equal devices: the first unit takes device 0, the second device 0 or 1, and so on.
        """
        units: dict[int, list[cp_model.IntVar]] = {}
        equal = self.problem.uniform
        for unit in self.work.operators["unit"].tolist():
            if unit not in units:
                usable = min(len(units) + 1, len(self.devices)) if equal else len(self.devices)
                units[unit] = [self.model.new_bool_var("") for _ in self.devices]
                self.model.add_exactly_one(units[unit][:usable])
                for variable in units[unit][usable:]:
                    self.model.add(variable == 0)
        return [units[unit] for unit in self.work.operators["unit"].tolist()]

    def copy(self, tensor: int, source: int, target: int, d: int) -> None:
        key = (tensor, d)
        if key not in self.copies:
            self.copies[key] = self.model.new_bool_var("")
        self.model.add(self.at[target][d] - self.at[source][d] <= self.copies[key])

    def memory_units(self, device: int) -> int:
        return int(np.ceil(self.work.capacity[device] / self.unit))

    def memory(self) -> None:
        """The full `train` rule; of `infer` the part that holds for every execution."""
        operators = self.work.operators
        train = self.problem.train
        unit = self.unit
        resident = (
            operators["persistent"] + operators["output"] if train else operators["persistent"]
        )
        for d in self.devices:
            terms = [int(b // unit) * self.at[v][d] for v, b in enumerate(resident.tolist()) if b]
            memory_units = self.memory_units(d)
            if train:
                terms += [
                    int(self.size[t] // unit) * c for (t, x), c in self.copies.items() if x == d
                ]
            largest = self.model.new_int_var(0, memory_units, "")
            for v, temporary in enumerate(operators["temporary"].tolist()):
                needed = temporary if train else temporary + float(operators["output"][v])
                if needed:
                    only_if(self.model.add(largest >= int(needed // unit)), self.at[v][d])
            self.model.add(sum(terms) + largest <= memory_units)

    def solver(self, seconds: float, effort: float) -> cp_model.CpSolver:
        """`effort` is CP-SAT's deterministic time; `seconds` only cuts it short."""
        solver = cp_model.CpSolver()
        if seconds < np.inf:
            solver.parameters.max_time_in_seconds = max(0.01, seconds)
        solver.parameters.max_deterministic_time = effort
        solver.parameters.random_seed = SEED
        solver.parameters.num_workers = 1
        return solver

    def devices_of(self, solver: cp_model.CpSolver) -> Ints:
        return np.array([[solver.value(x) for x in row].index(1) for row in self.at], np.int64)


def exceeds_total_memory(problem: PlacementProblem) -> bool:
    """Whether the operators need more memory than all devices have together."""
    operators = problem.work.operators
    resident = fsum(operators["persistent"]) + (fsum(operators["output"]) if problem.train else 0.0)
    return bool(resident > fsum(problem.work.capacity) * (1.0 + ROUNDING))


def find_fitting(
    problem: PlacementProblem, seconds: float, effort: float
) -> tuple[bool, Ints | None]:
    """(proven infeasible, devices (n) that satisfy the order-independent part of the rule)."""
    packing = PackingModel(problem)
    solver = packing.solver(seconds, effort)
    status = solver.solve(packing.model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return False, packing.devices_of(solver)
    return status == cp_model.INFEASIBLE, None
