"""Pieces of a call, one after the other: a split in time, inside all splits over devices.

Where devices cut tokens and gather them inside a function, a piece must be a part of every device's
tokens. So the loop is told apart into the devices' parts and the rest, and pieces cut the rest:

    8192 tokens = 8 devices x (16 pieces x 64)      a piece gathered: 8 x 64 tokens, 64 of each device
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from ..analysis.axes import Axes, OpAxes, Option, analyse
from ..layout import Factors, Layout, Shard, State
from ..mesh import Axis, Mesh
from ..model import Function
from .localize import SPLIT, AxisSharding, Boundary, Choices, extended, localize

Places = dict[int, Shard]  # of values, where the loop lies that pieces cut


class Division(msgspec.Struct, frozen=True):
    """How a function runs in `ways` pieces. `places` says where its values carry the loop, which
    devices cut into `outer` parts; `split` is the cut of what is left of it."""

    function: str
    ways: int
    outer: int
    places: tuple[tuple[int, Shard], ...]
    split: AxisSharding


class Form(msgspec.Struct, frozen=True):
    """What localizes a function: its axes, a mesh, and the split over it."""

    axes: Axes
    mesh: Mesh
    choices: Choices
    boundary: Boundary

    def local(self, function: Function) -> Function:
        """Raises UnreachableLayout where pieces would need each other."""
        return localize(function, self.axes, self.mesh, self.choices, self.boundary)


def piece_form(function: Function, axes: Axes, finer: Axes, form: Form, division: Division) -> Form:
    """What one piece computes of a function whose devices compute `form`; `finer` axes tell the loop
    of the division apart."""
    choices, boundary = form.choices, form.boundary
    if division.outer > 1:
        choices = tuple(
            tuple(_same(old, new, old.options[c]) for c in chosen)
            for old, new, chosen in zip(axes.ops, finer.ops, choices, strict=True)
        )
        boundary = _finer_boundary(function, boundary, axes, finer)
    mesh = Mesh((*form.mesh.axes, Axis(SPLIT, division.ways)))
    return Form(finer, mesh, *extended(choices, boundary, division.split))


def finer_axes(function: Function, axes: Axes, places: Places, outer: int) -> Axes:
    """The axes where the loop at these places is `outer` times the rest."""
    if outer == 1:
        return axes
    known: dict[int, Factors] = {}
    for value in (*(i.value for i in function.inputs), *(o.value for o in function.outputs)):
        factors = axes.factors[value]
        if value in places:
            dim, part = places[value]
            parts = factors[dim]
            told = (*parts[:part], outer, parts[part] // outer, *parts[part + 1 :])
            factors = (*factors[:dim], told, *factors[dim + 1 :])
        known[value] = factors
    return analyse(function, known)


def _same(old: OpAxes, new: OpAxes, option: Option) -> int:
    """The number of the option that does in finer axes what `option` does."""

    def moved(loop: str, part: int) -> tuple[str, int]:
        return loop, (_first(old.parts[loop], new.parts[loop], part) if loop else part)

    partner = None if option.partner is None else moved(*option.partner)
    wanted = (*moved(option.loop, option.part), partner)
    return next(
        number
        for number, found in enumerate(new.options)
        if (found.loop, found.part, found.partner) == wanted
        and (found.loop or found.inputs == option.inputs)
    )


def _first(old: tuple[int, ...], new: tuple[int, ...], part: int) -> int:
    """The first of the finer factors that make up a factor."""
    before, at, product = 1, 0, 1
    for size in old[:part]:
        before *= size
    while product < before:
        product *= new[at]
        at += 1
    return at


def _finer_boundary(function: Function, boundary: Boundary, old: Axes, new: Axes) -> Boundary:
    def moved(value: int) -> Callable[[State], State]:
        def state(have: State) -> State:
            if not isinstance(have, tuple):
                return have
            dim, part = have
            return dim, _first(old.factors[value][dim], new.factors[value][dim], part)

        return state

    def layouts(values: list[int | None], found: tuple[Layout | None, ...]) -> tuple:  # type: ignore[type-arg]
        return tuple(
            None if layout is None or value is None else tuple(map(moved(value), layout))
            for value, layout in zip(values, found, strict=True)
        )

    inputs, outputs = function.inputs, function.outputs
    return replace(
        boundary,
        inputs=layouts([i.value for i in inputs], boundary.inputs),
        gradients=layouts([i.gradient for i in inputs], boundary.gradients),
        outputs=layouts([o.value for o in outputs], boundary.outputs),
        tangents=layouts([o.tangent for o in outputs], boundary.tangents),
    )
