"""Checks of shardings by themselves; whether their splits exist is checked with the model."""

from __future__ import annotations

from ...model.mesh import Axis
from ...model.verify import require
from ..sharding import AxisSharding, Sharding
from ..strategy import ROLES
from .strategy import verify_strategy


def verify_sharding(sharding: Sharding, where: str) -> None:
    """One split and one placement per mesh axis, micro-batches first."""
    strategy = sharding.strategy
    verify_strategy(strategy, f"{where}.strategy")
    expected = tuple(Axis(r, n) for r, n in strategy.axes if not ROLES[r].stages)
    same = len(sharding.mesh.axes) > 0 and sharding.mesh.axes[1:] == expected
    require(same, f"{where}.mesh", "not micro and the strategy's axes")
    axes = len(sharding.mesh.axes)
    each = all(len(splits) == axes for splits in sharding.op_splits)
    require(each, f"{where}.op_splits", "one per mesh axis")
    boundary = sharding.boundary
    layouts = (*boundary.inputs, *boundary.outputs, *boundary.gradients, *boundary.tangents)
    for layout in layouts:
        require(layout is None or len(layout) == axes, f"{where}.boundary", "one per mesh axis")
    _verify_pairs(sharding.boundary, where)


def verify_axis_sharding(sharding: AxisSharding, where: str) -> None:
    _verify_pairs(sharding.boundary, where)


def _verify_pairs(boundary: object, where: str) -> None:
    """Every input has a gradient or none, every output a tangent or none."""
    for values, gradients in (("inputs", "gradients"), ("outputs", "tangents")):
        have, want = len(getattr(boundary, gradients)), len(getattr(boundary, values))
        require(have == want, f"{where}.boundary.{gradients}", f"{have} for {want} {values}")
