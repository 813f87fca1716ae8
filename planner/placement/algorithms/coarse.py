"""Coarse blocks for the local search: chains of operators with a single successor and predecessor.

Moves of blocks are simulated on the operators themselves, so coarsening loses no accuracy.
"""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled, inner
from ....cost_model.placement.arrays import Ints, Records
from ..problem import PlacementProblem
from .moves import Blocks, blocks_of

LONGEST = 16  # units in a block


def units(problem: PlacementProblem) -> Blocks:
    """One block per unit."""
    return blocks_of(problem.work.operators["unit"].copy())


def chains(problem: PlacementProblem) -> Blocks:
    """Units merged along edges that are the only one out of their source and into their target."""
    of, heads = problem.work.operators["unit"].copy(), np.arange(problem.units, dtype=np.int64)
    join(problem.work.operators, problem.work.edges, of, heads, np.ones_like(heads))
    return blocks_of(np.unique(of, return_inverse=True)[1].astype(np.int64))


@compiled
def join(operators: Records, edges: Records, of: Ints, head: Ints, size: Ints) -> None:
    """Merge the blocks at both ends of such edges (union-find); `head` (units) holds each itself at
    first, `size` (units) counts units."""
    for e in range(len(edges)):
        source, target = operators[edges[e].source], operators[edges[e].target]
        if source.after - source.first == 1 and target.read_after - target.read == 1:
            first, second = _head(head, source.unit), _head(head, target.unit)
            if first != second and size[first] + size[second] <= LONGEST:
                head[second] = first
                size[first] += size[second]
    for v in range(len(of)):
        of[v] = _head(head, of[v])


@inner
def _head(head: Ints, unit: int) -> int:
    while head[unit] != unit:
        head[unit] = head[head[unit]]
        unit = head[unit]
    return unit
