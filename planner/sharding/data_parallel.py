"""Sharding of a function along its batch: every operator splits its batch loop.

Data-parallel axes, ZeRO axes and micro-batches all split the batch, in space or in time, so they
share this propagation. An operator without a batch loop passes partial sums through if it is linear
in them, and is replicated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ...ir.analysis.axes import Axes, OpStrategy
from ...ir.analysis.dataflow import Dataflow
from ...ir.layout import PARTIAL, REPLICATE, AxisPlacement, Shard
from ...ir.lowering.localize import AxisSharding
from ...ir.model import Function


def replicated(function: Function) -> AxisSharding:
    """Sharding in which every device of the axis computes the full function."""
    return AxisSharding(
        (0,) * len(function.ops),
        (REPLICATE,) * len(function.inputs),
        tuple(None if i.gradient is None else REPLICATE for i in function.inputs),
        (REPLICATE,) * len(function.outputs),
        tuple(None if o.tangent is None else REPLICATE for o in function.outputs),
    )


def split_batch(
    function: Function, flow: Dataflow, summed: frozenset[int], experts: bool = False
) -> AxisSharding:
    """Shard one function along its batch. `summed` values (the loss) stay partial sums.

    With `experts`, operators that support expert parallelism use it, and their weights are sharded.
    """
    batch = flow.batch_factors[function.name]
    boundary = _boundary(function, lambda value: flow.batch_shard(function, value), summed)
    if experts:
        boundary = _experts_apart(function, flow, boundary)
    return _follow(function, flow.axes[function.name], boundary, batch, experts)


def follow(
    function: Function,
    axes: Axes,
    shards_at: Mapping[int, Shard],
    loops: frozenset[int],
    summed: frozenset[int],
) -> AxisSharding:
    """Shard one function along `loops`; boundary values are sharded as `shards_at` says."""
    return _follow(function, axes, _boundary(function, shards_at.get, summed), loops)


def _follow(
    function: Function,
    axes: Axes,
    boundary: AxisSharding,
    loops: frozenset[int],
    experts: bool = False,
) -> AxisSharding:
    """Propagate placements from the boundary: each operator takes the strategy its operands
    suggest.
    """
    placements: dict[int, AxisPlacement] = {}
    for item, placement in zip(function.inputs, boundary.inputs, strict=True):
        placements[item.value] = placement
    for output, tangent in zip(function.outputs, boundary.tangents, strict=True):
        if output.tangent is not None and tangent is not None:
            placements[output.tangent] = tangent
    choices = []
    for op, op_axes in zip(function.ops, axes.ops, strict=True):
        operands = tuple(placements[v] for v in op.operands())
        chosen = _choose(op_axes.options, operands, loops, experts)
        choices.append(chosen)
        for value, placement in zip(op.results, op_axes.options[chosen].outputs, strict=True):
            placements[value] = placement
    return msgspec.structs.replace(boundary, choices=tuple(choices))


def _choose(
    options: tuple[OpStrategy, ...],
    operands: tuple[AxisPlacement, ...],
    loops: frozenset[int],
    experts: bool,
) -> int:
    """Strategy that splits the loop most operands are sharded along, else passes sums, else 0."""
    along = [
        i for i, o in enumerate(options) if o.factor_id in loops and (experts or o.partner is None)
    ]
    if along:
        return max(along, key=lambda i: (_agreement(options[i], operands), -i))
    partial = {i for i, placement in enumerate(operands) if placement == PARTIAL}
    if partial:
        for i, option in enumerate(options):
            if option.factor_id < 0 and partial <= {
                j for j, s in enumerate(option.inputs) if s == PARTIAL
            }:
                return i
    return 0


def _agreement(option: OpStrategy, operands: tuple[AxisPlacement, ...]) -> int:
    return sum(want == have for want, have in zip(option.inputs, operands, strict=True))


def _experts_apart(function: Function, flow: Dataflow, boundary: AxisSharding) -> AxisSharding:
    """Shard expert weights, and their gradients, of operators that run expert-parallel."""
    batch = flow.batch_factors[function.name]
    placements: dict[int, AxisPlacement] = {}
    for op, op_axes in zip(function.ops, flow.axes[function.name].ops, strict=True):
        pairs = [o for o in op_axes.options if o.partner is not None and o.factor_id in batch]
        if pairs:
            placements.update(zip(op.operands(), pairs[0].inputs, strict=True))
    inputs, gradients = list(boundary.inputs), list(boundary.gradients)
    for i, item in enumerate(function.inputs):
        if item.kind == "parameter" and item.value in placements:
            inputs[i] = placements[item.value]
            gradients[i] = None if item.gradient is None else placements[item.value]
    return msgspec.structs.replace(boundary, inputs=tuple(inputs), gradients=tuple(gradients))


def _boundary(
    function: Function, where: Callable[[int], Shard | None], summed: frozenset[int]
) -> AxisSharding:
    def placement(value: int) -> AxisPlacement:
        shard = where(value)
        return REPLICATE if shard is None else shard

    inputs = tuple(
        placement(i.value) if i.kind == "activation" else REPLICATE for i in function.inputs
    )
    outputs = tuple(PARTIAL if o.value in summed else placement(o.value) for o in function.outputs)
    return AxisSharding(
        (),
        inputs,
        tuple(
            None if i.gradient is None else dual(s)
            for i, s in zip(function.inputs, inputs, strict=True)
        ),
        outputs,
        tuple(
            None if o.tangent is None else dual(s)
            for o, s in zip(function.outputs, outputs, strict=True)
        ),
    )


def dual(placement: AxisPlacement) -> AxisPlacement:
    """Placement of a gradient along the batch: replicated becomes partial and vice versa."""
    return {REPLICATE: PARTIAL, PARTIAL: REPLICATE}.get(placement, placement)  # type: ignore[call-overload]


def split_values(function: Function, sharding: AxisSharding, ops: tuple) -> frozenset[int]:  # type: ignore[type-arg]
    """Values that a sharding shards along the batch."""
    split = {i.value for i, s in zip(function.inputs, sharding.inputs, strict=True) if s != "R"}
    for op, op_axes, chosen in zip(function.ops, ops, sharding.choices, strict=True):
        for value, placement in zip(op.results, op_axes.options[chosen].outputs, strict=True):
            if isinstance(placement, tuple):
                split.add(value)
    return frozenset(split)
