"""Packing under a height by CP-SAT: rectangles with fixed times must not overlap."""

from __future__ import annotations

import numpy as np

from .branch import FOUND, NONE, STOPPED
from .sections import Ints, Sections


def solve_constrained(
    component: Sections, height: int, unit: int, hint: Ints, seconds: float
) -> tuple[int, Ints]:
    """FOUND with offsets, NONE if proven infeasible, STOPPED when time ran out.

    All sizes are multiples of `unit` bytes, so offsets can be too.
    """
    from ortools.sat.python import cp_model

    model, steps = cp_model.CpModel(), height // unit
    sizes = (component.size // unit).tolist()
    if max(sizes) > steps:
        return NONE, hint
    at = [model.new_int_var(0, steps - size, "") for size in sizes]
    spans = zip(component.first.tolist(), component.last.tolist(), strict=True)
    times = [model.new_fixed_size_interval_var(a, b - a, "") for a, b in spans]
    places = [
        model.new_fixed_size_interval_var(start, size, "")
        for start, size in zip(at, sizes, strict=True)
    ]
    model.add_no_overlap_2d(times, places)
    for start, value in zip(at, (hint // unit).tolist(), strict=True):
        model.add_hint(start, value)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return NONE, hint
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return STOPPED, hint
    return FOUND, np.array([solver.value(start) * unit for start in at], np.int64)
