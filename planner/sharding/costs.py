"""Costs of the sharding search from the roofline and link model, at one sample per device.

The roofline counts local flops and bytes: flops fall with every axis that splits a loop of the
operator, bytes with every axis that shards the value. Both are proportional to the batch, so the
sharding that is best for one sample is best for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...cost_model.communication.collective import Group, collective_seconds
from ...cost_model.operators.operator_cost import count_flops, exchanged_bytes
from ...cost_model.operators.roofline import op_seconds
from ...ir.analysis.axes import Axes, OpStrategy
from ...ir.devices.cluster import Cluster
from ...ir.layout import ReshardStep
from ...ir.loops import Loops
from ...ir.mesh import Mesh
from ...ir.model import Function

Floats = NDArray[np.float64]


class RooflineCosts:
    """Costs of one function on `mesh`; ranks next to each other along axis i differ by
    `strides[i]`.

    `batch_values` are sharded `batch_degree` times along the batch by axes outside of `mesh`.
    """

    def __init__(
        self,
        function: Function,
        axes: Axes,
        mesh: Mesh,
        cluster: Cluster,
        strides: tuple[int, ...],
        batch_values: frozenset[int] = frozenset(),
        batch_degree: int = 1,
    ) -> None:
        self.function, self.axes, self.cluster = function, axes, cluster
        self.mesh, self.strides = mesh, strides
        self.batch_values, self.batch_degree = batch_values, batch_degree
        self.collectives: dict[tuple[str, int, float], float] = {}

    def cost_class(self, value: int) -> float:
        """Bytes of a value before this mesh shards it, which is all that its steps depend on."""
        degree = self.batch_degree if value in self.batch_values else 1
        return self.function.types[value].bytes / degree

    def step(self, value: int, step: ReshardStep) -> float:
        """Seconds of one step; an all-gather is sized by its output, the others by their input."""
        layout = step.after if step.kind == "all_gather" else step.before
        degree = prod(
            axis.size
            for axis, s in zip(self.mesh.axes, layout, strict=True)
            if isinstance(s, tuple)
        )
        return self.send(step.kind, step.axis, self.cost_class(value) / degree)

    def operator(self, op: int, options: tuple[OpStrategy, ...]) -> float:
        """Seconds of one operator under one strategy per axis."""
        return float(self.operators(op, tuple((option,) for option in options)).item())

    def operators(self, op: int, options: tuple[tuple[OpStrategy, ...], ...]) -> Floats:
        """Seconds for every combination of one strategy per axis: [axis 0, axis 1, ...]."""
        declared, site = self.axes.ops[op].declared, self.function.ops[op]
        shape = tuple(len(axis) for axis in options)
        work = declared.work if declared else "move"
        if work == "view":
            return np.zeros(shape)
        operands = site.operands()
        values = (*operands, *site.results)
        moved = np.zeros(shape)
        for position, value in enumerate(values):
            if value >= 0:
                moved += self.cost_class(value) / self.shard_counts(
                    options, position, len(operands)
                )
        degree = self.batch_degree if self.batch_values.intersection(values) else 1
        flops = np.full(shape, count_flops(declared) / degree) / self.shard_counts(options, None, 0)
        floats = (self.function.types[v] for v in operands)
        dtype = next((t.dtype for t in floats if t.is_float), "float32")
        seconds = op_seconds(work, flops, moved, dtype, self.cluster.device)
        if declared is not None and declared.exchanges:
            seconds = seconds + self.exchange_seconds(declared, options, degree)
        return seconds

    def exchange_seconds(
        self, declared: Loops, options: tuple[tuple[OpStrategy, ...], ...], degree: int
    ) -> Floats:
        """Seconds of the operator's own collectives (expert all-to-all), over the same grid."""
        seconds = np.zeros(tuple(len(axis) for axis in options))
        for exchange in declared.exchanges:
            walked = {name for dim in exchange.dims for name in dim}
            local = (
                exchanged_bytes(exchange, declared)
                / degree
                / self.split_degrees(options, _splits_loops(walked))
            )
            for place, chosen in enumerate(options):
                talks = np.array([o.joint or o.partner is not None for o in chosen])
                if talks.any():
                    shape = [-1 if axis == place else 1 for axis in range(len(options))]
                    sent = np.vectorize(self.send)(exchange.kind, place, local)
                    seconds += sent * talks.reshape(shape)
        return seconds

    def send(self, kind: str, axis: int, amount: float) -> float:
        """Seconds of one collective of `amount` bytes over one axis."""
        key = (kind, axis, amount)
        if key not in self.collectives:
            group = Group(self.mesh.axes[axis].size, self.strides[axis])
            self.collectives[key] = float(collective_seconds(kind, amount, group, self.cluster))
        return self.collectives[key]

    def shard_counts(
        self, options: tuple[tuple[OpStrategy, ...], ...], position: int | None, operands: int
    ) -> Floats:
        """Number of shards over the grid: of the value at `position`, or (None) of the loops."""
        return self.split_degrees(options, lambda option: _splits_value(option, position, operands))

    def split_degrees(
        self, options: tuple[tuple[OpStrategy, ...], ...], predicate: Callable[[OpStrategy], bool]
    ) -> Floats:
        """Over the grid, product of the sizes of axes whose strategy satisfies the predicate."""
        counts = np.ones(())
        for axis, chosen in zip(self.mesh.axes, options, strict=True):
            sizes = [axis.size if predicate(option) else 1.0 for option in chosen]
            counts = np.multiply.outer(counts, np.array(sizes))
        return counts


def _splits_value(option: OpStrategy, position: int | None, operands: int) -> bool:
    if position is None:
        return bool(option.loop)
    inside = position < operands
    state = option.inputs[position] if inside else option.outputs[position - operands]
    return isinstance(state, tuple)


def _splits_loops(loops: set[str]) -> Callable[[OpStrategy], bool]:
    """Predicate: does a strategy split one of these loops?"""
    return lambda option: any(loop in loops for loop, _ in option.splits)
