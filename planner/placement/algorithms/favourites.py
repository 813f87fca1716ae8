"""Favourite children of m-SCT: the successor that should follow each operator on its device.

From the linear relaxation of Hanen and Munier 1995: with unlimited devices every operator shares
its device with at most one child and one parent, and all other transfers take time.
"""

from __future__ import annotations

import numpy as np

from ....cost_model.placement.arrays import Ints
from ...solvers.linear_program import LinearProgram, Variable, total
from ..problem import PlacementProblem, mean_transfer_us


def favourite_children(problem: PlacementProblem, apart: list[float], threshold: float) -> Ints:
    """(n) favourite child of every operator, or -1; `apart` (m): relaxed variables of `relaxed`."""
    edges = problem.work.edges
    child = np.full(problem.operators, -1, np.int64)
    parent = np.full(problem.operators, -1, np.int64)
    for e in np.flatnonzero([round(x - threshold + 0.5) == 0 for x in apart]):
        source, target = int(edges["source"][e]), int(edges["target"][e])
        if parent[target] >= 0:
            child[parent[target]] = -1
        child[source], parent[target] = target, source
    return child


def relaxed(problem: PlacementProblem) -> list[float]:
    """(m) relaxed variable per edge: 0, child and parent share a device, to 1, they do not."""
    work, spent = problem.work, mean_transfer_us(problem.work).tolist()
    program = LinearProgram()
    durations = problem.fastest_us.tolist()
    start = [program.real() for _ in durations]
    apart = [program.real(0.0, 1.0) for _ in spent]
    makespan = program.real()
    sources, targets = work.edges["source"].tolist(), work.edges["target"].tolist()
    for u, w, x, cost in zip(sources, targets, apart, spent, strict=True):
        program.require(start[w] - start[u] - cost * x >= durations[u])
    reads = work.reads.tolist()
    for v, (_, _, first, after, read, read_after, *_) in enumerate(work.operators.tolist()):
        read_by: list[Variable] = [apart[e] for e in reads[read:read_after]]
        for beside in (apart[first:after], read_by):
            if beside:
                program.require(total(beside) >= len(beside) - 1)
        if first == after:
            program.require(makespan - start[v] >= durations[v])
    program.minimise(makespan)
    solution = program.solve().solution
    if solution is None:  # costs that differ by more than the solver takes: no favourites
        return [1.0] * len(apart)
    return [solution.values[x] for x in apart]
