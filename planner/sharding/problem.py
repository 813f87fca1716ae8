"""Problem and solution of the sharding search, as plain data.

A problem names one function, the mesh axes to split it over and, per axis, the factors that may be
split and the placements allowed at the boundary. A solution gives every operator one OpStrategy per
axis.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...ir.analysis.axes import Axes, OpStrategy
from ...ir.model.layout import AxisPlacement, ReshardStep
from ...ir.model.mesh import Mesh
from ...ir.model.model import Function
from ...ir.plan.sharding import AxisSharding, OpSplit


class AxisRule(msgspec.Struct, frozen=True):
    """Splits that one mesh axis may make in one function.

    `loops`: ids of factors that may be split; strategies that split none are always allowed.
    `barred`: ids of factors that may not be split beside another either.
    `placements`: allowed placements of each boundary value (inputs, outputs, tangents, gradients of
    activations); a single placement is fixed, a value not listed is replicated.
    `gradients`: placement required of the gradient of a parameter or buffer, by the placement of
    the input itself; the same as the input's where not listed.
    `pins`: the split of operators by number, which may be of any factor.
    """

    loops: frozenset[int] = frozenset()
    placements: dict[int, tuple[AxisPlacement, ...]] = {}
    gradients: dict[AxisPlacement, AxisPlacement] = {}
    pins: dict[int, OpSplit] = {}
    barred: frozenset[int] = frozenset()

    def allows(self, option: OpStrategy) -> bool:
        """Whether an operator may be split so."""
        if option.partner_id in self.barred or option.paired == "rows":
            return False
        return option.factor_id < 0 or option.factor_id in self.loops


class Costs(Protocol):
    """Prices in seconds, one at a time; `BulkCosts` prices arrays."""

    def operator(self, op: int, options: tuple[OpStrategy, ...]) -> float:
        """Seconds of one operator on local shards under one strategy per axis."""
        ...

    def step(self, value: int, step: ReshardStep) -> float:
        """Seconds of one collective step on one value."""
        ...


@runtime_checkable
class BulkCosts(Protocol):
    """Costs that price whole grids of strategies; they must agree with `operator` and `step`."""

    def operator(self, op: int, options: tuple[OpStrategy, ...]) -> float:
        """Seconds of one operator on local shards under one strategy per axis."""
        ...

    def step(self, value: int, step: ReshardStep) -> float:
        """Seconds of one step; depends only on its kind, its axis and the axes that shard the
        value before it."""
        ...

    def operators(
        self, op: int, options: tuple[tuple[OpStrategy, ...], ...]
    ) -> NDArray[np.float64]:
        """`operator` for every combination of the strategies listed per axis: [axis 0, axis 1,
        ...].
        """
        ...

    def cost_class(self, value: int) -> Hashable:
        """Key of the equivalence class of values on which every step costs the same."""
        ...


class ShardingProblem(msgspec.Struct, frozen=True):
    """Find the cheapest strategy of every operator on every axis of `mesh` (outermost first).

    The objective is the seconds of all operators plus, for each value and separately in forward and
    backward, the seconds of resharding it from its producer's layout into every distinct layout
    that its consumers need. `memory_limit_bytes` limits the bytes of parameters, buffers and values
    saved for backward on one device.
    """

    function: Function
    axes: Axes
    mesh: Mesh
    rules: tuple[AxisRule, ...]
    costs: Costs
    memory_limit_bytes: float = inf


class ShardingSolution(msgspec.Struct, frozen=True):
    """One sharding per mesh axis; no assignment costs less than `bound` seconds (proven)."""

    axes: tuple[AxisSharding, ...]
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """Relative distance of `objective` from `bound`."""
        return (self.objective - self.bound) / self.objective if self.objective else 0.0
