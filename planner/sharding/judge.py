"""The price of a sharding, straight from the definition; it shares no code with the search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf

from ...ir.analysis.axes import OpAxes, Option
from ...ir.errors import PlaitError
from ...ir.layout import REPLICATE, Layout, State, fits, local_type, transition
from .data_parallel import AxisSharding
from .problem import AxisRule, ShardingProblem

Want = tuple[int, bool, Layout]  # value, in backward, layout


def price(problem: ShardingProblem, shardings: tuple[AxisSharding, ...]) -> float:
    """Seconds of one assignment; infinite where it breaks a rule, cuts what does not divide, moves
    what cannot be moved, or takes more memory than allowed."""
    if not _allowed(problem, shardings):
        return inf
    lies, wants = _layouts(problem, shardings)
    layouts = [*lies.items(), *((v, layout) for v, _, layout in wants)]
    if not all(fits(problem.axes.factors[v], layout, problem.mesh) for v, layout in layouts):
        return inf
    if held_and_saved_bytes(problem, lies) > problem.memory_bytes:
        return inf
    seconds = 0.0
    for i, known in enumerate(problem.axes.ops):
        options = tuple(known.options[s.choices[i]] for s in shardings)
        seconds += problem.costs.operator(i, options) if _nests(problem, known, options) else inf
    return seconds + sum(
        _moved(problem, v, lies[v], layout) for v, _, layout in sorted(wants, key=str)
    )


def _moved(problem: ShardingProblem, value: int, lies: Layout, wanted: Layout) -> float:
    try:
        steps = transition(lies, wanted)
    except (PlaitError, KeyError):
        return inf
    return sum((problem.costs.step(value, step) for step in steps), 0.0)


def _layouts(
    problem: ShardingProblem, shardings: tuple[AxisSharding, ...]
) -> tuple[dict[int, Layout], set[Want]]:
    """Where every value lies, and the distinct layouts wanted of it."""
    function = problem.function
    lies: dict[int, Layout] = {}
    wants: set[Want] = set()
    for i, item in enumerate(function.inputs):
        lies[item.value] = tuple(s.inputs[i] for s in shardings)
        if item.gradient is not None:
            wants.add((item.gradient, True, _layout(s.gradients[i] for s in shardings)))
    for i, output in enumerate(function.outputs):
        wants.add((output.value, False, tuple(s.outputs[i] for s in shardings)))
        if output.tangent is not None:
            lies[output.tangent] = _layout(s.tangents[i] for s in shardings)
    for i, (op, known) in enumerate(zip(function.ops, problem.axes.ops, strict=True)):
        options = [known.options[s.choices[i]] for s in shardings]
        for position, value in enumerate(op.operands()):
            layout = tuple(o.inputs[position] for o in options)
            wants.add((value, i >= function.forward, layout))
        for position, value in enumerate(op.results):
            if value >= 0:
                lies[value] = tuple(o.outputs[position] for o in options)
    return lies, wants


def _layout(states: Iterable[State | None]) -> Layout:
    """States of a value that exists."""
    return tuple(state for state in states if state is not None)


def held_and_saved_bytes(problem: ShardingProblem, lies: dict[int, Layout]) -> int:
    """Local bytes of held inputs and of float values made in forward and read in backward."""
    function = problem.function
    values = {i.value for i in function.held()}
    read = {v for op in function.backward_ops for v in op.operands()}
    for op in function.forward_ops:
        values |= {v for v in op.results if v in read and function.types[v].is_float}
    return sum(
        local_type(function.types[v], problem.axes.factors[v], lies[v], problem.mesh).bytes
        for v in values
    )


def _allowed(problem: ShardingProblem, shardings: tuple[AxisSharding, ...]) -> bool:
    sizes = [axis.size for axis in problem.mesh.axes]
    checks = zip(problem.rules, shardings, sizes, strict=True)
    return all(_ops_allowed(problem, *check) for check in checks) and all(
        _states_allowed(problem, *check)
        for check in zip(problem.rules, shardings, sizes, strict=True)
    )


def _ops_allowed(problem: ShardingProblem, rule: AxisRule, made: AxisSharding, size: int) -> bool:
    for i, known in enumerate(problem.axes.ops):
        option = known.options[made.choices[i]]
        if size == 1 and made.choices[i] != 0:
            return False
        if size > 1 and rule.pins.get(i, made.choices[i]) != made.choices[i]:
            return False
        free = option.atom < 0 or option.atom in rule.loops or i in rule.pins
        if not free or (option.loop and option.size % size):
            return False
    return True


def _nests(problem: ShardingProblem, known: OpAxes, options: tuple[Option, ...]) -> bool:
    """Whether the axes that split one factor of a loop divide it together."""
    ways: dict[tuple[str, int], int] = {}
    for axis, option in zip(problem.mesh.axes, options, strict=True):
        for cut in option.cuts:
            ways[cut] = ways.get(cut, 1) * axis.size
    return all(known.parts[loop][part] % n == 0 for (loop, part), n in ways.items())


def _states_allowed(
    problem: ShardingProblem, rule: AxisRule, made: AxisSharding, size: int
) -> bool:
    def may(value: int) -> tuple[object, ...]:
        return (REPLICATE,) if size == 1 else rule.states.get(value, (REPLICATE,))

    return all(state in may(value) for value, state in _free(problem, made)) and all(
        gradient == (state if size == 1 else rule.gradients.get(state, state))
        for item, state, gradient in zip(
            problem.function.inputs, made.inputs, made.gradients, strict=True
        )
        if item.gradient is not None and item.kind != "activation"
    )


def _free(problem: ShardingProblem, made: AxisSharding) -> Iterator[tuple[int, object]]:
    """Values at the boundary whose states the rules list, with the states they got."""
    for item, state, gradient in zip(
        problem.function.inputs, made.inputs, made.gradients, strict=True
    ):
        yield item.value, state
        if item.gradient is not None and item.kind == "activation":
            yield item.gradient, gradient
    for output, state, tangent in zip(
        problem.function.outputs, made.outputs, made.tangents, strict=True
    ):
        yield output.value, state
        if output.tangent is not None:
            yield output.tangent, tangent
