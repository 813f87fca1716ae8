"""Does a placement fit at all? Devices for operators under the memory rule alone, by CP-SAT.

Integers are rounded towards an easier problem, so that "none" is a proof.
"""

from __future__ import annotations

from math import fsum

import numpy as np
from ortools.sat.python import cp_model

from ...cost_model.placement.arrays import Ints
from .problem import Problem

ROOM = 2**30  # most units of memory in the largest device
SEED = 1
ROUNDING = 1e-12  # of sums of bytes


class Packing:
    """The model: `at[v][d]`, operator `v` is on device `d`; `copies[t, d]`, tensor `t` is sent there."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.work = problem, problem.work
        self.model = cp_model.CpModel()
        self.devices = range(problem.devices)
        largest = max(float(self.work.capacity.max()), 1e-9)
        self.unit = 2.0 ** np.ceil(np.log2(largest / ROOM))  # bytes; whole ones stay whole
        self.size = np.full(self.work.tensors, np.inf)  # bytes; the least where edges disagree
        np.minimum.at(self.size, self.work.edges["tensor"], self.work.edges["bytes"])
        self.at = self.choices()
        self.copies: dict[tuple[int, int], cp_model.IntVar] = {}
        for edge in self.work.edges:
            for d in self.devices:
                self.copy(int(edge["tensor"]), int(edge["source"]), int(edge["target"]), d)
        self.memory()

    def choices(self) -> list[list[cp_model.IntVar]]:
        """Per operator one variable per device; units share theirs. Equal devices are interchangeable:
        the first unit takes the first, the second one of the first two."""
        units: dict[int, list[cp_model.IntVar]] = {}
        equal = self.problem.alike
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

    def room(self, d: int) -> int:
        return int(np.ceil(self.work.capacity[d] / self.unit))

    def memory(self) -> None:
        """The `train` rule whole; of `infer` what no execution avoids."""
        own = self.work.operators
        train = self.problem.train
        unit = self.unit
        held = own["persistent"] + own["output"] if train else own["persistent"]
        for d in self.devices:
            terms = [int(b // unit) * self.at[v][d] for v, b in enumerate(held.tolist()) if b]
            room = self.room(d)
            if train:
                terms += [
                    int(self.size[t] // unit) * c for (t, x), c in self.copies.items() if x == d
                ]
            largest = self.model.new_int_var(0, room, "")
            for v, temporary in enumerate(own["temporary"].tolist()):
                needed = temporary if train else temporary + float(own["output"][v])
                if needed:
                    self.model.add(largest >= int(needed // unit)).only_enforce_if(self.at[v][d])
            self.model.add(sum(terms) + largest <= room)

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


def too_much(problem: Problem) -> bool:
    """Do the operators need more than all devices together have, wherever they run?"""
    own = problem.work.operators
    held = fsum(own["persistent"]) + (fsum(own["output"]) if problem.train else 0.0)
    return bool(held > fsum(problem.work.capacity) * (1.0 + ROUNDING))


def fitting(problem: Problem, seconds: float, effort: float) -> tuple[bool, Ints | None]:
    """(proved that nothing fits, devices that fit as far as the order does not matter)."""
    packing = Packing(problem)
    solver = packing.solver(seconds, effort)
    status = solver.solve(packing.model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return False, packing.devices_of(solver)
    return status == cp_model.INFEASIBLE, None
