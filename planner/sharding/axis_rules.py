"""Rules that each parallel role imposes on its mesh axis, as input of the sharding search.

role           may split                    activations between calls   weights
tp             factors of weights that no   replicated                  sharded in repeated layers
               activation between calls has
tp, bare sp    and the tokens of a sample   sharded by tokens           sharded in repeated layers
cp             the tokens of a sample       sharded by tokens           replicated
sp             all but the batch            sharded by tokens           replicated
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ...ir.analysis.axes import Axes
from ...ir.analysis.data_parallel import dual
from ...ir.analysis.dataflow import Dataflow
from ...ir.errors import PlaitError
from ...ir.model.layout import PARTIAL, REPLICATE, AxisPlacement
from ...ir.model.mesh import Axis
from ...ir.model.model import Function
from ...ir.plan.strategy import ROLES, Role
from . import AxisRule


class UnevenTokens(PlaitError):
    """The tokens of a value are not divisible by the degree of an axis."""


class AxisContext(NamedTuple):
    """What the rules of all axes of a function know of it.

    `tokens_sharded`: whether activations between calls are sharded by tokens. `batch_only` values
    are computed from the batch alone and replicated, since slicing them is free; `summed` outputs
    (the loss) are partial sums where the devices see different tokens. Parameters in `must_shard`
    must be sharded if possible; `split_elsewhere`: degree by which an axis outside of the search
    splits a loop (experts).
    """

    tokens_sharded: bool = False
    batch_only: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()
    must_shard: frozenset[int] = frozenset()
    split_elsewhere: Mapping[int, int] = MappingProxyType({})


def axis_rule(
    axis: Axis,
    function: Function,
    flow: Dataflow,
    context: AxisContext = AxisContext(),  # noqa: B008  (a constant)
    fixed: Mapping[int, AxisPlacement] = MappingProxyType({}),
) -> AxisRule:
    """Rule of one axis, which is named by its role.

    Values in `fixed` have the placement that another function decided. Raises UnevenTokens.
    """
    axes, kind, degree = flow.axes[function.name], ROLES[axis.name], axis.size
    by_tokens = kind.sequence or context.tokens_sharded
    whole = context.batch_only | flow.graph.updates(function.name)

    def call_boundary(value: int) -> AxisPlacement:
        shard = flow.token_shard(function, value) if by_tokens and value not in whole else None
        if shard is None:
            return REPLICATE
        if axes.factors[value][shard[0]][shard[1]] % degree:
            raise UnevenTokens(f"{function.name}: tokens do not split {degree} ways")
        return shard

    placements: dict[int, tuple[AxisPlacement, ...]] = {}
    for item in function.inputs:
        atoms = {atom for dim in axes.factor_ids[item.value] for atom in dim}
        apart = not atoms.isdisjoint(context.split_elsewhere)
        if item.kind == "parameter" and (kind.operators or apart):
            shards = weight_shards(axes, item.value, degree, context.split_elsewhere)
            placements[item.value] = (
                shards
                if shards and kind.operators and item.value in context.must_shard
                else (REPLICATE, *shards)
            )
        if item.kind == "activation":
            placements[item.value] = (call_boundary(item.value),)
            if item.gradient is not None:
                placements[item.gradient] = (_gradient(call_boundary(item.value), kind.sequence),)
        if item.value in fixed:
            placements[item.value] = (fixed[item.value],)
    for output in function.outputs:
        placement = call_boundary(output.value)
        if output.value in context.summed and kind.sequence:
            placement = PARTIAL
        placements[output.value] = (placement,)
        if output.tangent is not None:
            placements[output.tangent] = (_gradient(placement, kind.sequence),)
    gradients: dict[AxisPlacement, AxisPlacement] = {REPLICATE: PARTIAL} if by_tokens else {}
    loops = _split_loops(kind, function, flow, by_tokens)
    uneven = frozenset(
        a for a, n in context.split_elsewhere.items() if axes.sizes[a] % (n * degree)
    )
    return AxisRule(loops - uneven, placements, gradients, barred=uneven)


def _gradient(placement: AxisPlacement, sequence: bool) -> AxisPlacement:
    return dual(placement) if sequence else placement


def _split_loops(kind: Role, function: Function, flow: Dataflow, by_tokens: bool) -> frozenset[int]:
    axes = flow.axes[function.name]
    tokens = flow.token_factors[function.name] if by_tokens else frozenset[int]()
    loops = weight_loops(function, axes) if kind.operators else frozenset[int]()
    if kind.heads:
        loops = frozenset(axes.sizes)
    return (loops | tokens) - flow.batch_factors[function.name]


def weight_loops(function: Function, axes: Axes) -> frozenset[int]:
    """Factors of weight matrices that are internal to the function: heads, hidden units of an MLP,
    a vocabulary. Features passed between calls are replicated at both ends, and splitting them
    in between only trades one collective for two.
    """
    weights = (i.value for i in function.state_inputs() if len(function.types[i.value].shape) > 1)
    call_boundary = [i.value for i in function.activations()] + [o.value for o in function.outputs]
    passed = {atom for v in call_boundary for dim in axes.factor_ids[v] for atom in dim}
    return frozenset(
        a for v in weights for dim in axes.factor_ids[v] for a in dim if a not in passed
    )


def weight_shards(
    axes: Axes, value: int, degree: int, split_elsewhere: Mapping[int, int] = MappingProxyType({})
) -> tuple[AxisPlacement, ...]:
    """Shard placements over the factors of a value that `degree` divides, beside what else splits."""
    return tuple(
        (dim, part)
        for dim, parts in enumerate(axes.factors[value])
        for part, size in enumerate(parts)
        if size % (degree * split_elsewhere.get(axes.factor_ids[value][dim][part], 1)) == 0
    )
