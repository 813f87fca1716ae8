"""What the sharding search is asked and what it answers: plain data.

A problem names one function, the mesh axes to split it over and, per axis, which loops may be split
and how values may lie at the boundary. An answer gives every operator one option per axis.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...ir.analysis.axes import Axes, Option
from ...ir.layout import State, Step
from ...ir.mesh import Mesh
from ...ir.model import Function
from .data_parallel import AxisSharding


class AxisRule(msgspec.Struct, frozen=True):
    """What one mesh axis may do in one function.

    `loops`: atoms (`Option.atom`) that may be split; options without one are always allowed.
    `states`: per value at the boundary (inputs, outputs, tangents, gradients of activations) the
    states in which it may lie or be delivered; one state is fixed, a value not named is whole.
    `gradients`: how a held input's gradient must leave, by the state in which the input lies; as it
    lies itself where the state is not named. `pins`: operator number -> option number, on any loop.
    """

    loops: frozenset[int] = frozenset()
    states: dict[int, tuple[State, ...]] = {}
    gradients: dict[State, State] = {}
    pins: dict[int, int] = {}


class Costs(Protocol):
    """Prices in seconds. `BulkCosts` says how to give them faster."""

    def operator(self, op: int, options: tuple[Option, ...]) -> float:
        """One operator on local shards under one option per axis."""

    def step(self, value: int, step: Step) -> float:
        """One collective step on one value."""


@runtime_checkable
class BulkCosts(Protocol):
    """Costs that price many things at once; `price` and the search must agree on every number."""

    def operator(self, op: int, options: tuple[Option, ...]) -> float:
        """One operator on local shards under one option per axis."""

    def step(self, value: int, step: Step) -> float:
        """One step, by its kind, its axis and which axes cut the value before; no more than that."""

    def operators(self, op: int, options: tuple[tuple[Option, ...], ...]) -> NDArray[np.float64]:
        """`operator` over the grid of the options given per axis, as one array of that shape."""

    def alike(self, value: int) -> Hashable:
        """Equal for values on which every step costs the same."""


class ShardingProblem(msgspec.Struct, frozen=True):
    """Find the cheapest option of every operator on every axis of `mesh` (outermost first).

    The price is the seconds of all operators, and for each value, in forward and in backward, the
    seconds of bringing it from where it lies into every distinct layout that is wanted there.
    `memory_bytes` limits what held inputs and values saved for backward take on one device.
    """

    function: Function
    axes: Axes
    mesh: Mesh
    rules: tuple[AxisRule, ...]
    costs: Costs
    memory_bytes: float = inf


class ShardingSolution(msgspec.Struct, frozen=True):
    """One sharding per mesh axis; no assignment costs less than `bound` seconds."""

    axes: tuple[AxisSharding, ...]
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        return (self.objective - self.bound) / self.objective if self.objective else 0.0
