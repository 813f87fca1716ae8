"""Prices from the cost model's roofline and link levels, at one sample per device.

Seconds of an operator count its local flops and bytes: flops fall with every axis that splits one of
its loops, bytes with every axis that cuts the value. Both scale alike with the batch, so the split
that is best for one sample serves every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...cost_model.communication.collective import collective_seconds
from ...cost_model.operators.operator_cost import count_flops, exchanged_bytes
from ...cost_model.operators.roofline import op_seconds
from ...ir.analysis.axes import Axes, Option
from ...ir.devices.cluster import Cluster
from ...ir.layout import Step
from ...ir.loops import Loops
from ...ir.mesh import Mesh
from ...ir.model import Function

Floats = NDArray[np.float64]


class RooflineCosts:
    """Costs of one function on `mesh`, whose neighbours along each axis lie `strides` ranks apart.

    `batch_values` lie cut into `batch_share` pieces along the batch by other axes than these.
    """

    def __init__(
        self,
        function: Function,
        axes: Axes,
        mesh: Mesh,
        cluster: Cluster,
        strides: tuple[int, ...],
        batch_values: frozenset[int] = frozenset(),
        batch_share: int = 1,
    ) -> None:
        self.function, self.axes, self.cluster = function, axes, cluster
        self.mesh, self.strides = mesh, strides
        self.batch_values, self.batch_share = batch_values, batch_share
        self.collectives: dict[tuple[str, int, float], float] = {}

    def alike(self, value: int) -> float:
        """Bytes of a value before this mesh cuts it: all that its steps depend on."""
        share = self.batch_share if value in self.batch_values else 1
        return self.function.types[value].bytes / share

    def step(self, value: int, step: Step) -> float:
        """Seconds of one step: an all-gather moves what it makes, the others what they are given."""
        held = step.after if step.kind == "all_gather" else step.before
        cut = prod(
            axis.size for axis, s in zip(self.mesh.axes, held, strict=True) if isinstance(s, tuple)
        )
        return self.send(step.kind, step.axis, self.alike(value) / cut)

    def operator(self, op: int, options: tuple[Option, ...]) -> float:
        """Seconds of one operator under one option per axis."""
        return float(self.operators(op, tuple((option,) for option in options)).item())

    def operators(self, op: int, options: tuple[tuple[Option, ...], ...]) -> Floats:
        """Seconds over the grid of the options given per axis."""
        known, site = self.axes.ops[op].declared, self.function.ops[op]
        shape = tuple(len(axis) for axis in options)
        work = known.work if known else "move"
        if work == "view":
            return np.zeros(shape)
        operands = site.operands()
        values = (*operands, *site.results)
        moved = np.zeros(shape)
        for position, value in enumerate(values):
            if value >= 0:
                moved += self.alike(value) / self.grid(options, position, len(operands))
        along = self.batch_share if self.batch_values.intersection(values) else 1
        flops = np.full(shape, count_flops(known) / along) / self.grid(options, None, 0)
        floats = (self.function.types[v] for v in operands)
        dtype = next((t.dtype for t in floats if t.is_float), "float32")
        seconds = op_seconds(work, flops, moved, dtype, self.cluster.device)
        if known is not None and known.exchanges:
            seconds = seconds + self.exchanged(known, options, along)
        return seconds

    def exchanged(
        self, known: Loops, options: tuple[tuple[Option, ...], ...], along: int
    ) -> Floats:
        """Seconds over the grid of what the operator sends by itself, where it is split so."""
        seconds = np.zeros(tuple(len(axis) for axis in options))
        for exchange in known.exchanges:
            walked = {name for dim in exchange.dims for name in dim}
            local = exchanged_bytes(exchange, known) / along / self.outer(options, _walks(walked))
            for place, chosen in enumerate(options):
                talks = np.array([o.joint or o.partner is not None for o in chosen])
                if talks.any():
                    shape = [-1 if axis == place else 1 for axis in range(len(options))]
                    sent = np.vectorize(self.send)(exchange.kind, place, local)
                    seconds += sent * talks.reshape(shape)
        return seconds

    def send(self, kind: str, axis: int, amount: float) -> float:
        """Seconds of one collective over one axis."""
        key = (kind, axis, amount)
        if key not in self.collectives:
            size, stride = self.mesh.axes[axis].size, self.strides[axis]
            self.collectives[key] = float(
                collective_seconds(kind, amount, size, stride, self.cluster)
            )
        return self.collectives[key]

    def grid(
        self, options: tuple[tuple[Option, ...], ...], position: int | None, operands: int
    ) -> Floats:
        """Pieces over the grid of options: of the value at a position, or (None) of the loops."""
        return self.outer(options, lambda option: _cuts(option, position, operands))

    def outer(
        self, options: tuple[tuple[Option, ...], ...], cuts: Callable[[Option], bool]
    ) -> Floats:
        """Over the grid of options, the product of the axes whose option cuts."""
        pieces = np.ones(())
        for axis, chosen in zip(self.mesh.axes, options, strict=True):
            ways = [axis.size if cuts(option) else 1.0 for option in chosen]
            pieces = np.multiply.outer(pieces, np.array(ways))
        return pieces


def _cuts(option: Option, position: int | None, operands: int) -> bool:
    if position is None:
        return bool(option.loop)
    inside = position < operands
    state = option.inputs[position] if inside else option.outputs[position - operands]
    return isinstance(state, tuple)


def _walks(loops: set[str]) -> Callable[[Option], bool]:
    """Whether an option splits one of these loops."""
    return lambda option: any(loop in loops for loop, _ in option.cuts)
