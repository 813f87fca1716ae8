"""Favourite children: which operator should follow each operator on its device.

The linear relaxation of Hanen and Munier 1995, as m-SCT uses it: with unlimited devices every
operator keeps at most one child and one parent beside it, all other transfers take their time.
"""

from __future__ import annotations

import numpy as np
from ortools.math_opt.python import mathopt

from ....cost_model.placement.arrays import Ints
from ..problem import Problem, mean_transfer_us


def favourite_children(problem: Problem, apart: list[float], threshold: float) -> Ints:
    """(n) the favourite child of every operator, or -1; `apart` (m) are the relaxed choices."""
    edges = problem.work.edges
    child = np.full(problem.operators, -1, np.int64)
    parent = np.full(problem.operators, -1, np.int64)
    for e in np.flatnonzero([round(x - threshold + 0.5) == 0 for x in apart]):
        source, target = int(edges["source"][e]), int(edges["target"][e])
        if parent[target] >= 0:
            child[parent[target]] = -1
        child[source], parent[target] = target, source
    return child


def relaxed(problem: Problem) -> list[float]:
    """(m) per edge between 0, the child is kept beside its parent, and 1, it is apart."""
    work, spent = problem.work, mean_transfer_us(problem.work).tolist()
    model = mathopt.Model()
    own = problem.fastest_us.tolist()
    start = [model.add_variable(lb=0.0) for _ in own]
    apart = [model.add_variable(lb=0.0, ub=1.0) for _ in spent]
    makespan = model.add_variable(lb=0.0)
    sources, targets = work.edges["source"].tolist(), work.edges["target"].tolist()
    for u, w, x, cost in zip(sources, targets, apart, spent, strict=True):
        model.add_linear_constraint(start[w] - start[u] - cost * x >= own[u])
    reads = work.reads.tolist()
    for v, (_, _, first, after, read, read_after, *_) in enumerate(work.operators.tolist()):
        for beside in (apart[first:after], [apart[e] for e in reads[read:read_after]]):
            if beside:
                model.add_linear_constraint(mathopt.fast_sum(beside) >= len(beside) - 1)
        if first == after:
            model.add_linear_constraint(makespan - start[v] >= own[v])
    model.minimize(makespan)
    found = mathopt.solve(model, mathopt.SolverType.HIGHS)
    return [found.variable_values(x) for x in apart]
