"""How a function runs when an axis splits the batch: every operator follows its batch loop.

The same walk serves data-parallel and zero axes and the micro-batches: each is a split of the batch,
in space or in time. Where an operator has no batch loop, sums pass through it if it is linear in
them, and otherwise it runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ...ir.analysis.axes import Axes, Option
from ...ir.analysis.dataflow import Flow
from ...ir.layout import PARTIAL, REPLICATE, Shard, State
from ...ir.lowering.localize import AxisSharding
from ...ir.model import Function


def whole(function: Function) -> AxisSharding:
    """Every device of the axis computes everything: an axis of size one, or one of no use here."""
    return AxisSharding(
        (0,) * len(function.ops),
        (REPLICATE,) * len(function.inputs),
        tuple(None if i.gradient is None else REPLICATE for i in function.inputs),
        (REPLICATE,) * len(function.outputs),
        tuple(None if o.tangent is None else REPLICATE for o in function.outputs),
    )


def split_batch(
    function: Function, flow: Flow, summed: frozenset[int], experts: bool = False
) -> AxisSharding:
    """The split of one function along its batch. `summed` values (the loss) stay partial sums.

    With `experts`, operators that can take tokens to experts apart do, and their weights lie cut.
    """
    batch = flow.batch[function.name]
    boundary = _boundary(function, lambda value: flow.batch_shard(function, value), summed)
    if experts:
        boundary = _experts_apart(function, flow, boundary)
    return _follow(function, flow.axes[function.name], boundary, batch, experts)


def follow(
    function: Function,
    axes: Axes,
    places: Mapping[int, Shard],
    loops: frozenset[int],
    summed: frozenset[int],
) -> AxisSharding:
    """The split of one function along some loops, which its values carry at `places`."""
    return _follow(function, axes, _boundary(function, places.get, summed), loops)


def _follow(
    function: Function,
    axes: Axes,
    boundary: AxisSharding,
    loops: frozenset[int],
    experts: bool = False,
) -> AxisSharding:
    """Every operator does what its operands ask for, from the boundary on."""
    states: dict[int, State] = {}
    for item, state in zip(function.inputs, boundary.inputs, strict=True):
        states[item.value] = state
    for output, tangent in zip(function.outputs, boundary.tangents, strict=True):
        if output.tangent is not None and tangent is not None:
            states[output.tangent] = tangent
    choices = []
    for op, known in zip(function.ops, axes.ops, strict=True):
        operands = tuple(states[v] for v in op.operands())
        chosen = _choose(known.options, operands, loops, experts)
        choices.append(chosen)
        for value, state in zip(op.results, known.options[chosen].outputs, strict=True):
            states[value] = state
    return msgspec.structs.replace(boundary, choices=tuple(choices))


def _choose(
    options: tuple[Option, ...], operands: tuple[State, ...], loops: frozenset[int], experts: bool
) -> int:
    """The loop that most operands already follow, else sums pass, else whole."""
    along = [i for i, o in enumerate(options) if o.atom in loops and (experts or o.partner is None)]
    if along:
        return max(along, key=lambda i: (_agreement(options[i], operands), -i))
    sums = {i for i, state in enumerate(operands) if state == PARTIAL}
    if sums:
        for i, option in enumerate(options):
            if option.atom < 0 and sums <= {j for j, s in enumerate(option.inputs) if s == PARTIAL}:
                return i
    return 0


def _agreement(option: Option, operands: tuple[State, ...]) -> int:
    return sum(want == have for want, have in zip(option.inputs, operands, strict=True))


def _experts_apart(function: Function, flow: Flow, boundary: AxisSharding) -> AxisSharding:
    """Held inputs that an operator takes apart along with the batch, and their gradients, lie cut."""
    batch = flow.batch[function.name]
    states: dict[int, State] = {}
    for op, known in zip(function.ops, flow.axes[function.name].ops, strict=True):
        pairs = [o for o in known.options if o.partner is not None and o.atom in batch]
        if pairs:
            states.update(zip(op.operands(), pairs[0].inputs, strict=True))
    inputs, gradients = list(boundary.inputs), list(boundary.gradients)
    for i, item in enumerate(function.inputs):
        if item.kind == "parameter" and item.value in states:
            inputs[i] = states[item.value]
            gradients[i] = None if item.gradient is None else states[item.value]
    return msgspec.structs.replace(boundary, inputs=tuple(inputs), gradients=tuple(gradients))


def _boundary(
    function: Function, where: Callable[[int], Shard | None], summed: frozenset[int]
) -> AxisSharding:
    def state(value: int) -> State:
        shard = where(value)
        return REPLICATE if shard is None else shard

    inputs = tuple(state(i.value) if i.kind == "activation" else REPLICATE for i in function.inputs)
    outputs = tuple(PARTIAL if o.value in summed else state(o.value) for o in function.outputs)
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


def dual(state: State) -> State:
    """Along the batch, what is whole collects its gradient as a sum, and a sum spreads its own."""
    return {REPLICATE: PARTIAL, PARTIAL: REPLICATE}.get(state, state)  # type: ignore[call-overload]


def split_values(function: Function, sharding: AxisSharding, ops: tuple) -> frozenset[int]:  # type: ignore[type-arg]
    """Values that lie cut along the batch."""
    split = {i.value for i, s in zip(function.inputs, sharding.inputs, strict=True) if s != "R"}
    for op, known, chosen in zip(function.ops, ops, sharding.choices, strict=True):
        for value, state in zip(op.results, known.options[chosen].outputs, strict=True):
            if isinstance(state, tuple):
                split.add(value)
    return frozenset(split)
