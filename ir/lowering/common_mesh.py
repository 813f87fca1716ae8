"""The common mesh of layers with different strategies, and resharding between them.

    dp=4          4 devices, one axis         ┐
    dp=2,tp=2     2 of them, 2 inside         ┴─▶   common mesh: dp 2 × dp_tp 2

Every axis of a layer's mesh is one or several neighbouring axes of the common mesh. A value goes from
its producer to a consumer by the collectives between both layouts on the common mesh.
"""

from __future__ import annotations

from math import prod

import msgspec

from ..analysis.axes import Axes
from ..analysis.factors import common_refinement, refined_index
from ..model.layout import (
    REPLICATE,
    AxisPlacement,
    Factors,
    Layout,
    ReshardStep,
    divides_evenly,
    reshard_steps,
)
from ..model.mesh import MICRO, Mesh
from ..model.model import Function
from ..model.tensor import TensorType
from ..plan.strategy import ROLES


def lift_layout(layout: Layout, mesh: Mesh, onto: Mesh) -> Layout:
    """A layout on `mesh` as one on the common mesh `onto`; replicated over stages and other axes."""
    states: list[AxisPlacement] = []
    for number, axis in enumerate(onto.axes):
        if axis.name == MICRO:
            source = next((i for i, a in enumerate(mesh.axes) if a.name == MICRO), None)
        elif axis.name in ROLES and ROLES[axis.name].stages:
            source = None
        else:
            source = mesh.axis_at(onto.stride(number))
            source = None if source is not None and mesh.axes[source].name == MICRO else source
        states.append(REPLICATE if source is None or axis.size == 1 else layout[source])
    return tuple(states)


class TensorLayout(msgspec.Struct, frozen=True):
    """A global tensor type and its layout on the common mesh; shards are of its own `factors`."""

    type: TensorType
    factors: Factors
    layout: Layout


def tensor_layout(
    value: int, layout: Layout, function: Function, axes: Axes, mesh: Mesh, onto: Mesh
) -> TensorLayout:
    """The layout of a function's value, lifted from the function's mesh to the common mesh `onto`."""
    return TensorLayout(function.types[value], axes.factors[value], lift_layout(layout, mesh, onto))


class Resharding(msgspec.Struct, frozen=True):
    """Steps that take a tensor from one layout to another, in terms of its refined `factors`."""

    type: TensorType
    factors: Factors
    steps: tuple[ReshardStep, ...]


def resharding(source: TensorLayout, target: TensorLayout, onto: Mesh) -> Resharding | None:
    """The collectives from `source` to `target` on mesh `onto`.

    None where a shard does not divide its factor, or a step would communicate over micro-batches.
    """
    assert source.type.shape == target.type.shape, f"{source} is not {target}"
    pairs = zip(source.factors, target.factors, strict=True)
    factors = tuple(common_refinement(one, other) or (prod(one),) for one, other in pairs)
    before, after = _refined(source, factors), _refined(target, factors)
    if before is None or after is None:
        return None
    if not (divides_evenly(factors, before, onto) and divides_evenly(factors, after, onto)):
        return None
    steps = reshard_steps(before, after)
    if any(onto.axes[s.axis].name == MICRO and s.kind not in ("cut", "share") for s in steps):
        return None
    return Resharding(source.type, factors, steps)


def _refined(tensor: TensorLayout, factors: Factors) -> Layout | None:
    """The layout in terms of refined factors: a shard is of the outermost factor that it had."""
    states: list[AxisPlacement] = []
    for state in tensor.layout:
        if isinstance(state, tuple):
            dim, factor = state
            index = refined_index(tensor.factors[dim], factors[dim], factor)
            if index is None:
                return None
            state = (dim, index)
        states.append(state)
    return tuple(states)
