"""Costs of the sharding search from the roofline and link model, at one sample per device.

The roofline counts local flops and bytes: flops fall with every axis that splits a loop of the
operator, bytes with every axis that shards the value. Both are proportional to the batch, so the
sharding that is best for one sample is best for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ...cost_model.communication.collective import CommGroup, collective_seconds
from ...cost_model.execution_model import GENERATED, ExecutionModel
from ...cost_model.operators.operator_cost import (
    count_flops,
    exchanged_bytes,
    operator_rule,
    score_bytes,
    score_loops,
    sent_share,
    streamed_bytes,
)
from ...cost_model.operators.roofline import op_seconds
from ...ir.analysis.axes import Axes, OpStrategy
from ...ir.devices.cluster import Cluster
from ...ir.model.layout import ReshardStep
from ...ir.model.loops import Loops, site_of
from ...ir.model.mesh import Mesh
from ...ir.model.model import Function

Floats = NDArray[np.float64]


class BatchSplit(NamedTuple):
    """Values that are sharded `degree` times along the batch."""

    values: frozenset[int]
    degree: int


UNSPLIT = BatchSplit(frozenset(), 1)


class RooflineCosts:
    """Costs of one function on `mesh`; ranks next to each other along axis i differ by
    `strides[i]`.

    `batch`: what axes outside of `mesh` shard.
    """

    def __init__(
        self,
        function: Function,
        axes: Axes,
        mesh: Mesh,
        cluster: Cluster,
        strides: tuple[int, ...],
        batch: BatchSplit = UNSPLIT,
        execution: ExecutionModel = GENERATED,
    ) -> None:
        self.function, self.axes, self.cluster = function, axes, cluster
        self.mesh, self.strides = mesh, strides
        self.batch, self.execution = batch, execution
        self.sites = [site_of(op, function.types) for op in function.ops]
        self.collectives: dict[tuple[str, int, float], float] = {}

    def cost_class(self, value: int) -> float:
        """Bytes of a value before this mesh shards it, which is all that its steps depend on."""
        degree = self.batch.degree if value in self.batch.values else 1
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
        """Seconds for every combination of one strategy per axis: [axis 0, axis 1, ...].

        The same rule prices the operator of a per-device function, one at a time."""
        declared, site = self.axes.ops[op].declared, self.sites[op]
        shape = tuple(len(axis) for axis in options)
        rule = operator_rule(site, declared, self.cluster.device, self.execution)
        if rule.work == "view":
            return np.zeros(shape)
        operands, results = site.op.operands(), site.op.results
        sizes = [
            self.cost_class(value) / self.shard_counts(options, position, len(operands))
            for position, value in enumerate((*operands, *results))
            if value >= 0
        ]
        read, written = sizes[: len(operands)], sizes[len(operands) :]
        batched = self.batch.values.intersection((*operands, *results))
        degree = self.batch.degree if batched else 1
        flops = np.full(shape, count_flops(declared) / degree) / self.shard_counts(options, None, 0)
        scores = np.zeros(shape)
        if rule.score_passes and declared is not None:
            walked = _splits_loops(score_loops(declared))
            scores += score_bytes(site, declared) / degree / self.split_degrees(options, walked)
        seconds = rule.seconds(flops, rule.moved_bytes(read, written, scores), self.cluster.device)
        if declared is not None and declared.streamed:
            between = np.zeros(shape)
            for part in declared.streamed:
                whole = streamed_bytes(site, replace(declared, streamed=(part,))) / degree
                between += whole / self.split_degrees(options, _splits_loops(set(part[0])))
            device = self.cluster.device
            seconds = seconds + op_seconds(
                "pointwise", np.zeros(shape), between, rule.dtype, device
            )
        seconds = seconds + self.average_seconds(options, written)
        if declared is not None and declared.exchanges:
            seconds = seconds + self.exchange_seconds(declared, options, degree)
        return seconds

    def average_seconds(
        self, options: tuple[tuple[OpStrategy, ...], ...], written: list[Floats]
    ) -> Floats:
        """Seconds to divide means over shards by the number of shards."""
        shards = self.split_degrees(options, lambda option: option.mean)
        device, seconds = self.cluster.device, np.zeros(shards.shape)
        if not (shards > 1).any():
            return seconds
        for size in written:
            seconds += op_seconds("pointwise", size * 0.0, 2 * size, "float32", device, "div")
        return np.where(shards > 1, seconds, 0.0)

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
                    group = CommGroup(self.mesh.axes[place].size, self.strides[place])
                    share = sent_share(exchange, group, self.cluster, self.execution)
                    sent = np.vectorize(self.send)(exchange.kind, place, local * share)
                    seconds += sent * talks.reshape(shape)
        return seconds

    def send(self, kind: str, axis: int, amount: float) -> float:
        """Seconds of one collective of `amount` bytes over one axis."""
        key = (kind, axis, amount)
        if key not in self.collectives:
            group = CommGroup(self.mesh.axes[axis].size, self.strides[axis])
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
