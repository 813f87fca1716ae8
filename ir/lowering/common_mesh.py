"""One grid of devices under layers that split them differently, and how values pass between them.

    dp=4          4 devices, one axis         ┐
    dp=2,tp=2     2 of them, 2 inside         ┴─▶   grid: dp 2 × dp_tp 2

Every axis of a layer's mesh is one or several neighbouring axes of the grid. A value goes from the
layer that makes it to one that takes it by the collectives between both layouts on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import msgspec

from ..analysis.axes import Axes
from ..layout import REPLICATE, Factors, Layout, State, Step, fits, transition
from ..mesh import Axis, Mesh
from ..model import Function
from ..plan.strategy import ROLES
from ..tensor import TensorType
from .localize import MICRO


def grid(meshes: Sequence[Mesh]) -> Mesh | None:
    """The coarsest mesh whose axes make up those of all meshes; None where there is none.

    An axis is named by the roles it plays, so one mesh alone is its own grid.
    """
    if all(mesh == meshes[0] for mesh in meshes):
        return meshes[0]
    marks = {1} | {
        mesh.stride(i) * axis.size for mesh in meshes for i, axis in enumerate(mesh.axes)
    }
    strides = sorted(marks)
    if any(outer % inner for inner, outer in pairwise(strides)):
        return None
    axes: list[Axis] = []
    for inner, outer in reversed(list(pairwise(strides))):
        roles = dict.fromkeys(_at(mesh, inner).name for mesh in meshes if _at(mesh, inner).size > 1)
        axes.append(Axis(_new("_".join(roles), axes), outer // inner))
    return Mesh(tuple(axes))


def _new(name: str, axes: list[Axis]) -> str:
    taken = {axis.name for axis in axes}
    numbered = (f"{name}_{n}" for n in range(2, len(axes) + 3))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _at(mesh: Mesh, stride: int) -> Axis:
    """The axis along which ranks `stride` apart are neighbours or further; size 1 where none is."""
    number = _covering(mesh, stride)
    return Axis("", 1) if number is None else mesh.axes[number]


def _covering(mesh: Mesh, stride: int) -> int | None:
    for number, axis in enumerate(mesh.axes):
        inner = mesh.stride(number)
        if axis.size > 1 and inner <= stride < inner * axis.size:
            return number
    return None


def lift(layout: Layout, mesh: Mesh, onto: Mesh) -> Layout:
    """A layout on a layer's mesh as one on a grid; whole over stages and axes it says nothing of."""
    states: list[State] = []
    for number, axis in enumerate(onto.axes):
        if axis.name == MICRO:
            own = next((i for i, a in enumerate(mesh.axes) if a.name == MICRO), None)
        elif axis.name in ROLES and ROLES[axis.name].stages:
            own = None
        else:
            own = _covering(mesh, onto.stride(number))
            own = None if own is not None and mesh.axes[own].name == MICRO else own
        states.append(REPLICATE if own is None or axis.size == 1 else layout[own])
    return tuple(states)


class Lying(msgspec.Struct, frozen=True):
    """How a tensor lies on a grid; cuts are of its own `factors`."""

    type: TensorType
    factors: Factors
    layout: Layout


def lying(
    value: int, layout: Layout, function: Function, axes: Axes, mesh: Mesh, onto: Mesh
) -> Lying:
    """A value of a function that lies in a layout on the function's mesh, on a grid."""
    return Lying(function.types[value], axes.factors[value], lift(layout, mesh, onto))


class Passage(msgspec.Struct, frozen=True):
    """The way of a tensor from one layout to another: `steps` cut and join `factors`."""

    type: TensorType
    factors: Factors
    steps: tuple[Step, ...]


def passage(source: Lying, target: Lying, onto: Mesh) -> Passage | None:
    """The collectives between both; None where a cut does not divide, or would join micro-batches."""
    assert source.type.shape == target.type.shape, f"{source} is not {target}"
    factors = tuple(
        _finer(one, other) for one, other in zip(source.factors, target.factors, strict=True)
    )
    before, after = _refined(source, factors), _refined(target, factors)
    if before is None or after is None:
        return None
    if not (fits(factors, before, onto) and fits(factors, after, onto)):
        return None
    steps = transition(before, after)
    if any(onto.axes[s.axis].name == MICRO and s.kind not in ("cut", "share") for s in steps):
        return None
    return Passage(source.type, factors, steps)


def _finer(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Factors of one dimension that make up both lists, outermost first; else the whole as one."""
    ends = sorted({prod(f[: i + 1]) for f in (one, other) for i in range(len(f))} | {1})
    if any(outer % inner for inner, outer in pairwise(ends)):
        return (prod(one),)
    return tuple(outer // inner for inner, outer in pairwise(ends)) or (1,)


def _refined(lying: Lying, factors: Factors) -> Layout | None:
    """The layout's cuts as cuts of finer factors: of the outermost that makes up the one cut."""
    states: list[State] = []
    for state in lying.layout:
        if isinstance(state, tuple):
            dim, part = state
            outside, size, found = prod(lying.factors[dim][:part]), 1, 0
            while size < outside and found < len(factors[dim]):
                size *= factors[dim][found]
                found += 1
            if size != outside or found == len(factors[dim]):
                return None
            state = (dim, found)
        states.append(state)
    return tuple(states)
