"""Price of a sharding computed from the definition; an independent check of the search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf

from ...ir.analysis.axes import OpAxes, OpStrategy
from ...ir.errors import PlaitError
from ...ir.model.layout import (
    REPLICATE,
    AxisPlacement,
    Layout,
    divides_evenly,
    local_type,
    reshard_steps,
)
from ...ir.plan.sharding import AxisSharding, Boundary
from .problem import AxisRule, ShardingProblem

ConsumedLayout = tuple[int, bool, Layout]  # value, in backward, layout


def price(problem: ShardingProblem, shardings: tuple[AxisSharding, ...]) -> float:
    """Seconds of one assignment; infinite where it breaks a rule, shards unevenly, needs a
    resharding that does not exist, or exceeds the memory limit.
    """
    if not _allowed(problem, shardings):
        return inf
    produced, consumed = _layouts(problem, shardings)
    layouts = [*produced.items(), *((v, layout) for v, _, layout in consumed)]
    if not all(
        divides_evenly(problem.axes.factors[v], layout, problem.mesh) for v, layout in layouts
    ):
        return inf
    if state_and_saved_bytes(problem, produced) > problem.memory_limit_bytes:
        return inf
    seconds = 0.0
    for i, op_axes in enumerate(problem.axes.ops):
        options = tuple(op_axes.by_name[s.op_splits[i]] for s in shardings)
        seconds += (
            problem.costs.operator(i, options)
            if _factors_divide(problem, op_axes, options)
            else inf
        )
    return seconds + sum(
        _reshard_seconds(problem, v, produced[v], layout)
        for v, _, layout in sorted(consumed, key=str)
    )


def _reshard_seconds(
    problem: ShardingProblem, value: int, produced: Layout, consumed_layout: Layout
) -> float:
    try:
        steps = reshard_steps(produced, consumed_layout)
    except (PlaitError, KeyError):
        return inf
    return sum((problem.costs.step(value, step) for step in steps), 0.0)


def _layouts(
    problem: ShardingProblem, shardings: tuple[AxisSharding, ...]
) -> tuple[dict[int, Layout], set[ConsumedLayout]]:
    """Layout in which each value is produced, and the distinct layouts that consumers need."""
    function = problem.function
    produced: dict[int, Layout] = {}
    consumed: set[ConsumedLayout] = set()
    for i, item in enumerate(function.inputs):
        produced[item.value] = tuple(s.boundary.inputs[i] for s in shardings)
        if item.gradient is not None:
            consumed.add((item.gradient, True, _layout(s.boundary.gradients[i] for s in shardings)))
    for i, output in enumerate(function.outputs):
        consumed.add((output.value, False, _layout(s.boundary.outputs[i] for s in shardings)))
        if output.tangent is not None:
            produced[output.tangent] = _layout(s.boundary.tangents[i] for s in shardings)
    for i, (op, op_axes) in enumerate(zip(function.ops, problem.axes.ops, strict=True)):
        options = [op_axes.by_name[s.op_splits[i]] for s in shardings]
        for position, value in enumerate(op.operands()):
            layout = _layout(o.inputs[position] for o in options)
            consumed.add((value, i >= function.forward, layout))
        for position, value in enumerate(op.results):
            if value >= 0:
                produced[value] = tuple(o.outputs[position] for o in options)
    return produced, consumed


def _layout(placements: Iterable[AxisPlacement | None]) -> Layout:
    """Layout of a value that is known to exist (no placement is None)."""
    return tuple(placement for placement in placements if placement is not None)


def state_and_saved_bytes(problem: ShardingProblem, produced: dict[int, Layout]) -> int:
    """Bytes per device of parameters, buffers and float values that forward saves for backward."""
    function = problem.function
    values = {i.value for i in function.state_inputs()}
    read = {v for op in function.backward_ops for v in op.operands()}
    for op in function.forward_ops:
        values |= {v for v in op.results if v in read and function.types[v].differentiable}
    return sum(
        local_type(function.types[v], problem.axes.factors[v], produced[v], problem.mesh).bytes
        for v in values
    )


def _allowed(problem: ShardingProblem, shardings: tuple[AxisSharding, ...]) -> bool:
    sizes = [axis.size for axis in problem.mesh.axes]
    checks = zip(problem.rules, shardings, sizes, strict=True)
    return all(_ops_allowed(problem, *check) for check in checks) and all(
        _placements_allowed(problem, *check)
        for check in zip(problem.rules, shardings, sizes, strict=True)
    )


def _ops_allowed(
    problem: ShardingProblem, rule: AxisRule, sharding: AxisSharding, size: int
) -> bool:
    for i, op_axes in enumerate(problem.axes.ops):
        split = sharding.op_splits[i]
        option = op_axes.by_name[split]
        if size == 1 and not split.replicates:
            return False
        if size > 1 and rule.pins.get(i, split) != split:
            return False
        free = rule.allows(option) or i in rule.pins
        if not free or (option.loop and option.size % size):
            return False
    return True


def _factors_divide(
    problem: ShardingProblem, op_axes: OpAxes, options: tuple[OpStrategy, ...]
) -> bool:
    """Whether every factor is divisible by the product of the axes that split it."""
    degrees: dict[tuple[str, int], int] = {}
    for axis, option in zip(problem.mesh.axes, options, strict=True):
        for factor in option.splits:
            degrees[factor] = degrees.get(factor, 1) * axis.size
    return all(op_axes.loop_factors[loop][part] % n == 0 for (loop, part), n in degrees.items())


def _placements_allowed(
    problem: ShardingProblem, rule: AxisRule, sharding: AxisSharding, size: int
) -> bool:
    boundary = sharding.boundary

    def permitted(value: int) -> tuple[object, ...]:
        return (REPLICATE,) if size == 1 else rule.placements.get(value, (REPLICATE,))

    return all(
        placement in permitted(value)
        for value, placement in _boundary_placements(problem, boundary)
    ) and all(
        gradient == (placement if size == 1 else rule.gradients.get(placement, placement))
        for item, placement, gradient in zip(
            problem.function.inputs, boundary.inputs, boundary.gradients, strict=True
        )
        if item.gradient is not None and item.kind != "activation"
    )


def _boundary_placements(
    problem: ShardingProblem, boundary: Boundary[AxisPlacement]
) -> Iterator[tuple[int, object]]:
    """Boundary values whose placements the rules restrict, with the placements assigned to them."""
    for item, placement, gradient in zip(
        problem.function.inputs, boundary.inputs, boundary.gradients, strict=True
    ):
        yield item.value, placement
        if item.gradient is not None and item.kind == "activation":
            yield item.gradient, gradient
    for output, placement, tangent in zip(
        problem.function.outputs, boundary.outputs, boundary.tangents, strict=True
    ):
        yield output.value, placement
        if output.tangent is not None:
            yield output.tangent, tangent
