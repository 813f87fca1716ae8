"""Labels: every legal way to split one operator over all mesh axes at once, as arrays of numbers.

A label is one option per axis. Along an axis a value's states are numbered; a layout is one number,
the axes' states as digits (the last axis fastest).
"""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from ....ir.analysis.axes import Option
from ....ir.layout import REPLICATE, Layout, State, fits
from ....ir.mesh import Mesh
from ..problem import AxisRule, ShardingProblem

Ints = NDArray[np.int64]
Usable = tuple[tuple[int, ...], ...]  # per axis the options that rule and size allow


class Labels(msgspec.Struct, frozen=True):
    """An operator's labels: per axis the place of its option among the usable ones [labels], and
    the place of every label in the grid of usable options."""

    usable: Usable
    columns: tuple[Ints, ...]
    grid: Ints

    def options(self, label: int) -> tuple[int, ...]:
        """The option number on every axis."""
        pairs = zip(self.usable, self.columns, strict=True)
        return tuple(usable[column[label]] for usable, column in pairs)


def usable_options(problem: ShardingProblem, op: int) -> Usable:
    """Per axis the options that its rule and size allow."""
    options = problem.axes.ops[op].options
    return tuple(
        _usable(options, rule, axis.size, rule.pins.get(op))
        for rule, axis in zip(problem.rules, problem.mesh.axes, strict=True)
    )


def _usable(
    options: tuple[Option, ...], rule: AxisRule, size: int, pin: int | None
) -> tuple[int, ...]:
    if size == 1:
        return (0,)
    return tuple(
        number
        for number, option in enumerate(options)
        if (pin == number or (pin is None and (option.atom < 0 or option.atom in rule.loops)))
        and not (option.loop and option.size % size)
    )


def joint(options: tuple[Option, ...], usable: Usable, mesh: Mesh) -> Labels:
    """Labels of an operator: combinations whose cuts of one factor divide it together."""
    places = [np.arange(len(u)) for u in usable]
    columns = [column.ravel() for column in np.meshgrid(*places, indexing="ij")]
    legal = np.ones(len(columns[0]), dtype=bool)
    for cut, size in cut_sizes(options).items():
        ways = np.ones(len(legal), dtype=np.int64)
        for axis, chosen, column in zip(mesh.axes, usable, columns, strict=True):
            split = [axis.size if cut in options[n].cuts else 1 for n in chosen]
            ways *= np.array(split, dtype=np.int64)[column]
        legal &= size % ways == 0
    grid = np.flatnonzero(legal)
    return Labels(usable, tuple(column[grid] for column in columns), grid)


def cut_sizes(options: tuple[Option, ...]) -> dict[tuple[str, int], int]:
    """The size of every factor of a loop; a pair's factors have options of their own as well."""
    return {o.cuts[0]: o.size for o in options if len(o.cuts) == 1}


def boundary_layouts(problem: ShardingProblem, value: int) -> list[Layout]:
    """The layouts that the rules allow of a value at the boundary and that divide it."""
    states: list[tuple[State, ...]] = [
        (REPLICATE,) if axis.size == 1 else rule.states.get(value, (REPLICATE,))
        for rule, axis in zip(problem.rules, problem.mesh.axes, strict=True)
    ]
    factors = problem.axes.factors[value]
    return [layout for layout in product(*states) if fits(factors, layout, problem.mesh)]


def gradient_layout(problem: ShardingProblem, layout: Layout) -> Layout:
    """How the gradient of a held input leaves when the input lies in `layout`."""
    return tuple(
        state if axis.size == 1 else rule.gradients.get(state, state)
        for rule, axis, state in zip(problem.rules, problem.mesh.axes, layout, strict=True)
    )
