"""How a function runs when an axis splits the batch: every operator follows its batch loop.

The same walk serves data-parallel and zero axes and the micro-batches: each is a split of the batch,
in space or in time. Where an operator has no batch loop, sums pass through it if it is linear in
them, and otherwise it runs whole.
"""

from __future__ import annotations

import msgspec

from ..ir.axes import Option
from ..ir.flow import Flow
from ..ir.layout import PARTIAL, REPLICATE, State
from ..ir.model import Function


class AxisSharding(msgspec.Struct, frozen=True):
    """One mesh axis of a function: the option of every operator, and the states at the boundary."""

    choices: tuple[int, ...]
    inputs: tuple[State, ...]
    gradients: tuple[State | None, ...]
    outputs: tuple[State, ...]
    tangents: tuple[State | None, ...]


def split_batch(function: Function, flow: Flow, summed: frozenset[int]) -> AxisSharding:
    """The split of one function along its batch. `summed` values (the loss) stay partial sums."""
    boundary = _boundary(function, flow, summed)
    states: dict[int, State] = {}
    for item, state in zip(function.inputs, boundary.inputs, strict=True):
        states[item.value] = state
    for output, tangent in zip(function.outputs, boundary.tangents, strict=True):
        if output.tangent is not None and tangent is not None:
            states[output.tangent] = tangent
    batch = flow.batch[function.name]
    choices = []
    for op, known in zip(function.ops, flow.axes[function.name].ops, strict=True):
        operands = tuple(states[v] for v in op.operands())
        chosen = _choose(known.options, operands, batch)
        choices.append(chosen)
        for value, state in zip(op.results, known.options[chosen].outputs, strict=True):
            states[value] = state
    return msgspec.structs.replace(boundary, choices=tuple(choices))


def _choose(
    options: tuple[Option, ...], operands: tuple[State, ...], batch: frozenset[int]
) -> int:
    """The batch loop that most operands already follow, else sums pass, else whole."""
    along = [i for i, option in enumerate(options) if option.atom in batch]
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


def _boundary(function: Function, flow: Flow, summed: frozenset[int]) -> AxisSharding:
    def state(value: int) -> State:
        shard = flow.batch_shard(function, value)
        return REPLICATE if shard is None else shard

    inputs = tuple(
        state(i.value) if i.kind == "activation" else REPLICATE for i in function.inputs
    )
    outputs = tuple(PARTIAL if o.value in summed else state(o.value) for o in function.outputs)
    return AxisSharding(
        (),
        inputs,
        tuple(
            None if i.gradient is None else _dual(s)
            for i, s in zip(function.inputs, inputs, strict=True)
        ),
        outputs,
        tuple(
            None if o.tangent is None else _dual(s)
            for o, s in zip(function.outputs, outputs, strict=True)
        ),
    )


def _dual(state: State) -> State:
    """Along the batch, what is whole collects its gradient as a sum, and a sum spreads its own."""
    return {REPLICATE: PARTIAL, PARTIAL: REPLICATE}.get(state, state)  # type: ignore[call-overload]
