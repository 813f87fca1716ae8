"""Node strategies: every legal combination of one OpStrategy per mesh axis, as integer arrays.

Placements of a value along an axis are numbered; a layout is one number whose digits are the axes'
placements (the last axis varies fastest).
"""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from ....ir.analysis.axes import OpStrategy
from ....ir.model.layout import REPLICATE, AxisPlacement, Layout, divides_evenly
from ....ir.model.mesh import Mesh
from ....ir.plan.sharding import OpSplit
from ..problem import AxisRule, ShardingProblem

Ints = NDArray[np.int64]
Usable = tuple[tuple[int, ...], ...]  # per axis, the OpStrategy numbers that rule and size allow


class NodeStrategies(msgspec.Struct, frozen=True):
    """Strategies of one operator.

    `columns[axis]` [strategies]: index into `usable[axis]`; `grid` [strategies]: index into the
    flattened grid of all combinations of usable ones."""

    usable: Usable
    columns: tuple[Ints, ...]
    grid: Ints

    def options(self, strategy: int) -> tuple[int, ...]:
        """OpStrategy number on every axis."""
        pairs = zip(self.usable, self.columns, strict=True)
        return tuple(usable[int(column[strategy])] for usable, column in pairs)


def usable_options(problem: ShardingProblem, op: int) -> Usable:
    """Per axis, the OpStrategy numbers that its rule and size allow."""
    options = problem.axes.ops[op].options
    return tuple(
        _usable(options, rule, axis.size, rule.pins.get(op))
        for rule, axis in zip(problem.rules, problem.mesh.axes, strict=True)
    )


def _usable(
    options: tuple[OpStrategy, ...], rule: AxisRule, size: int, pin: OpSplit | None
) -> tuple[int, ...]:
    if size == 1:
        return (0,)
    return tuple(
        number
        for number, option in enumerate(options)
        if (pin == option.name or (pin is None and rule.allows(option)))
        and not (option.loop and option.size % size)
    )


def legal_strategies(options: tuple[OpStrategy, ...], usable: Usable, mesh: Mesh) -> NodeStrategies:
    """Combinations in which every factor is divisible by the product of the axes that split it."""
    places = [np.arange(len(u)) for u in usable]
    columns = [column.ravel() for column in np.meshgrid(*places, indexing="ij")]
    legal = np.ones(len(columns[0]), dtype=bool)
    for factor, size in factor_sizes(options).items():
        degree = np.ones(len(legal), dtype=np.int64)
        for axis, chosen, column in zip(mesh.axes, usable, columns, strict=True):
            split = [axis.size if factor in options[n].splits else 1 for n in chosen]
            degree *= np.array(split, dtype=np.int64)[column]
        legal &= size % degree == 0
    grid = np.flatnonzero(legal)
    return NodeStrategies(usable, tuple(column[grid] for column in columns), grid)


def factor_sizes(options: tuple[OpStrategy, ...]) -> dict[tuple[str, int], int]:
    """Size of every factor of a loop; factors that occur in pairs also have strategies of their
    own.
    """
    return {o.splits[0]: o.size for o in options if len(o.splits) == 1}


def boundary_layouts(problem: ShardingProblem, value: int) -> list[Layout]:
    """Layouts of a boundary value that the rules allow and that shard it evenly."""
    placements: list[tuple[AxisPlacement, ...]] = [
        (REPLICATE,) if axis.size == 1 else rule.placements.get(value, (REPLICATE,))
        for rule, axis in zip(problem.rules, problem.mesh.axes, strict=True)
    ]
    factors = problem.axes.factors[value]
    return [
        layout for layout in product(*placements) if divides_evenly(factors, layout, problem.mesh)
    ]


def gradient_layout(problem: ShardingProblem, layout: Layout) -> Layout:
    """Layout required of the gradient of a parameter or buffer that has `layout`."""
    return tuple(
        placement if axis.size == 1 else rule.gradients.get(placement, placement)
        for rule, axis, placement in zip(problem.rules, problem.mesh.axes, layout, strict=True)
    )
