"""Sharding of a function along its batch: every operator splits its batch loop.

Data-parallel axes, ZeRO axes and micro-batches all split the batch, in space or in time, so they
share this propagation. An operator without a batch loop passes partial sums through if it is linear
in them, and is replicated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from msgspec.structs import replace

from ..model.layout import PARTIAL, REPLICATE, AxisPlacement, Shard
from ..model.loops import Paired
from ..model.model import Function
from ..plan.sharding import REPLICATED, AxisSharding, Boundary, OpSplit, boundary_values
from .axes import Axes, OpStrategy
from .dataflow import Dataflow

NO_SHARDS: Mapping[int, Shard] = MappingProxyType({})


def replicated(function: Function) -> AxisSharding:
    """Sharding in which every device of the axis computes the full function."""
    boundary: Boundary[AxisPlacement] = boundary_values(function).map(lambda _: REPLICATE)
    return AxisSharding((REPLICATED,) * len(function.ops), boundary)


def split_batch(
    function: Function,
    flow: Dataflow,
    summed: frozenset[int],
    apart: Paired | None = None,
    weights: Mapping[int, Shard] = NO_SHARDS,
) -> AxisSharding:
    """Shard one function along its batch. `summed` values between calls (the loss and its terms) stay
    partial sums; new values of buffers, which every device has whole, are gathered.

    Where experts or rows of tables are `apart`, operators that can send data to them do, and their
    weights are sharded.
    `weights` are sharded as it says; what reads them gathers them, their gradients are reduced.
    """
    batch, whole = flow.batch_factors[function.name], flow.graph.updates(function.name)

    def shard(value: int) -> Shard | None:
        return None if value in whole else flow.batch_shard(function, value)

    boundary = _boundary(function, shard, summed)
    if apart:
        boundary = _weights_apart(function, flow, boundary, apart)
    boundary = _with_weights(function, boundary, weights)
    return _follow(function, flow.axes[function.name], boundary, batch, apart)


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
    boundary: Boundary[AxisPlacement],
    loops: frozenset[int],
    apart: Paired | None = None,
) -> AxisSharding:
    return _propagated(function, axes, boundary, loops, apart).sharding


class _Propagated(NamedTuple):
    """A sharding, and the placements in which its operators leave all values."""

    sharding: AxisSharding
    placements: dict[int, AxisPlacement]


def _propagated(
    function: Function,
    axes: Axes,
    boundary: Boundary[AxisPlacement],
    loops: frozenset[int],
    apart: Paired | None = None,
) -> _Propagated:
    """Propagate placements from the boundary: each operator takes the strategy its operands
    suggest.
    """
    placements: dict[int, AxisPlacement] = {}
    weights = set[int]()  # in shards, with what single operators make of them
    for item, placement in zip(function.inputs, boundary.inputs, strict=True):
        placements[item.value] = placement
        if item.kind == "parameter" and isinstance(placement, tuple) and not apart:
            weights.add(item.value)
    for output, tangent in zip(function.outputs, boundary.tangents, strict=True):
        if output.tangent is not None and tangent is not None:
            placements[output.tangent] = tangent
    splits: list[OpSplit] = []
    for op, op_axes in zip(function.ops, axes.ops, strict=True):
        operands: tuple[AxisPlacement, ...] = tuple(placements[v] for v in op.operands())
        passed = len(operands) == 1 and weights.issuperset(op.operands())
        same = next((o for o in op_axes.options if passed and o.inputs == operands), None)
        if same is not None:
            weights.update(op.results)
        chosen = same or _choose(op_axes.options, operands, loops, apart)
        splits.append(chosen.name)
        placements.update(zip(op.results, chosen.outputs, strict=True))
    return _Propagated(AxisSharding(tuple(splits), boundary), placements)


def partial_outputs(
    function: Function, flow: Dataflow, summed: frozenset[int], apart: Paired | None = None
) -> frozenset[int]:
    """The outputs that a split of the batch leaves as partial sums, where `summed` values are."""
    sharding = split_batch(function, flow, summed, apart)
    axes, batch = flow.axes[function.name], flow.batch_factors[function.name]
    placements = _propagated(function, axes, sharding.boundary, batch, apart).placements
    return frozenset(o.value for o in function.outputs if placements.get(o.value) == PARTIAL)


def _choose(
    options: tuple[OpStrategy, ...],
    operands: tuple[AxisPlacement, ...],
    loops: frozenset[int],
    apart: Paired | None,
) -> OpStrategy:
    """Strategy that splits the loop most operands are sharded along, else passes sums, else
    replicates."""
    along = [o for o in options if o.factor_id in loops and o.paired in (None, apart)]
    if along:
        # a gradient has no operand that says that its weight is apart
        return max(along, key=lambda o: (_agreement(o, operands), o.paired is not None))
    partial = {i for i, placement in enumerate(operands) if placement == PARTIAL}
    if partial:
        for option in options:
            passed = {i for i, placement in enumerate(option.inputs) if placement == PARTIAL}
            if option.factor_id < 0 and partial <= passed:
                return option
    return options[0]


def _agreement(option: OpStrategy, operands: tuple[AxisPlacement, ...]) -> int:
    return sum(want == have for want, have in zip(option.inputs, operands, strict=True))


def _weights_apart(
    function: Function, flow: Dataflow, boundary: Boundary[AxisPlacement], apart: Paired
) -> Boundary[AxisPlacement]:
    """Shard weights of experts, or rows of tables, and their gradients, where data travel to them."""
    batch = flow.batch_factors[function.name]
    placements: dict[int, AxisPlacement] = {}
    for op, op_axes in zip(function.ops, flow.axes[function.name].ops, strict=True):
        pairs = [o for o in op_axes.options if o.paired == apart and o.factor_id in batch]
        if pairs:
            placements.update(zip(op.operands(), pairs[0].inputs, strict=True))
    inputs, gradients = list(boundary.inputs), list(boundary.gradients)
    for i, item in enumerate(function.inputs):
        if item.kind == "parameter" and item.value in placements:
            inputs[i] = placements[item.value]
            gradients[i] = None if item.gradient is None else placements[item.value]
    return replace(boundary, inputs=tuple(inputs), gradients=tuple(gradients))


def _with_weights(
    function: Function, boundary: Boundary[AxisPlacement], weights: Mapping[int, Shard]
) -> Boundary[AxisPlacement]:
    """The boundary with some weights, and their gradients, in shards."""
    pairs = tuple(zip(function.inputs, boundary.inputs, boundary.gradients, strict=True))
    return replace(
        boundary,
        inputs=tuple(weights.get(item.value, state) for item, state, _ in pairs),
        gradients=tuple(
            None if state is None else weights.get(item.value, state) for item, _, state in pairs
        ),
    )


def _boundary(
    function: Function, where: Callable[[int], Shard | None], summed: frozenset[int]
) -> Boundary[AxisPlacement]:
    def placement(value: int) -> AxisPlacement:
        if value in summed:
            return PARTIAL
        shard = where(value)
        return REPLICATE if shard is None else shard

    inputs: tuple[AxisPlacement, ...] = tuple(
        placement(i.value) if i.kind == "activation" else REPLICATE for i in function.inputs
    )
    outputs: tuple[AxisPlacement, ...] = tuple(placement(o.value) for o in function.outputs)
    gradients: list[AxisPlacement | None] = [
        None if i.gradient is None else dual(state)
        for i, state in zip(function.inputs, inputs, strict=True)
    ]
    tangents: list[AxisPlacement | None] = [
        None if o.tangent is None else dual(state)
        for o, state in zip(function.outputs, outputs, strict=True)
    ]
    return Boundary(inputs, tuple(gradients), outputs, tuple(tangents))


def dual(placement: AxisPlacement) -> AxisPlacement:
    """Placement of a gradient along the batch: replicated becomes partial and vice versa."""
    if placement == REPLICATE:
        return PARTIAL
    return REPLICATE if placement == PARTIAL else placement


def split_values(function: Function, axes: Axes, sharding: AxisSharding) -> frozenset[int]:
    """Values that a sharding shards along the batch."""
    placements = zip(function.inputs, sharding.boundary.inputs, strict=True)
    values = {item.value for item, placement in placements if placement != REPLICATE}
    for op, op_axes, split in zip(function.ops, axes.ops, sharding.op_splits, strict=True):
        placed = zip(op.results, op_axes.by_name[split].outputs, strict=True)
        values.update(value for value, placement in placed if isinstance(placement, tuple))
    return frozenset(values)
