"""When the values of a training step live: all forward pieces, then all backward pieces in reverse.

Time counts operators. Parameters, their gradients and the batch live elsewhere; a parameter's
gradient is here until its call's backward ends, when it is added to its place. Views own no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ...ir import ops as _declarations  # noqa: F401  (fills the registry)
from ...ir.buffers import Buffer
from ...ir.model import Call, Function, Model, Op
from ...ir.op import declaration, site_of
from ...ir.pieces import Variant, made_by, split

ALIGNMENT_BYTES = 256  # what device kernels and allocators ask of an address

Place = tuple[int, str, int]  # call, piece, value: where a storage was made


class StepBuffers(msgspec.Struct, frozen=True):
    """The buffers of one step, and the times at which its pieces begin (and the last ends)."""

    buffers: tuple[Buffer, ...]
    cuts: tuple[int, ...]


def step_buffers(
    model: Model, variant: Variant = "keep", alignment_bytes: int = ALIGNMENT_BYTES
) -> StepBuffers:
    """Every buffer of a step of `model` with its lifetime; all calls under one memory variant.

    Sizes are rounded up to the alignment, so that every address a packing gives is a multiple of it.
    Names say where a buffer is made: call, piece, value.
    """
    recorder = _Recorder()
    routines = {f.name: _Routine(f, variant) for f in model.functions}
    cuts = [0]
    for number, call in enumerate(model.calls):
        recorder.forward(number, call, routines[call.function])
        cuts.append(recorder.now)
    for number, call in reversed(list(enumerate(model.calls))):
        if routines[call.function].function.differentiable:
            recorder.backward(number, call, routines[call.function])
            cuts.append(recorder.now)
    return StepBuffers(tuple(recorder.buffers(alignment_bytes)), tuple(cuts))


class _Routine:
    """A function's two pieces and the value whose memory each value shares."""

    def __init__(self, function: Function, variant: Variant) -> None:
        self.function = function
        self.forward: tuple[Op, ...] = function.forward_ops
        self.backward: tuple[Op, ...] = ()
        if function.differentiable:
            pieces = split(function, variant)
            self.forward, self.backward = pieces.forward, pieces.backward
        self.again = made_by(self.backward)  # what backward makes, recomputed values too
        self.root = list(range(len(function.types)))
        for op in function.ops:
            operands = op.operands()
            declared = declaration(site_of(op, function.types)) if operands else None
            if declared is not None and declared.work == "view":
                for result in op.results:
                    if result >= 0:
                        self.root[result] = self.root[operands[0]]

    def bytes(self, value: int) -> int:
        return self.function.types[value].bytes


class _Recorder:
    """Walks the step and notes of every storage its bytes, its birth and its last use."""

    def __init__(self) -> None:
        self.now = 0
        self.born: dict[Place, tuple[int, int]] = {}
        self.last: dict[Place, int] = {}
        self.values: dict[str, Place] = {}  # results of calls; what the batch holds is missing
        self.gradients: dict[str, Place] = {}

    def forward(self, number: int, call: Call, routine: _Routine) -> None:
        known: dict[int, Place | None] = {i.value: None for i in routine.function.inputs}
        arguments = zip(routine.function.activations(), call.arguments, strict=True)
        known.update({item.value: self.values.get(name) for item, name in arguments})
        self.run(routine.forward, number, "forward", routine, known)
        for output, name in zip(routine.function.outputs, call.results, strict=False):
            made = known.get(routine.root[output.value])
            if made is not None:
                self.values[name] = made
                self.last[made] = self.now

    def backward(self, number: int, call: Call, routine: _Routine) -> None:
        known = self.at_backward(number, call, routine)
        self.run(routine.backward, number, "backward", routine, known)
        function = routine.function
        gradients = [i.gradient for i in function.inputs if i.gradient is not None]
        made = {v: place for v in gradients if (place := known.get(routine.root[v])) is not None}
        self.last.update(dict.fromkeys(made.values(), self.now))
        for item, name in zip(function.activations(), call.arguments, strict=True):
            if item.gradient is not None and item.gradient in made:
                self.add(name, made[item.gradient], (number, "sum", item.gradient))

    def at_backward(self, number: int, call: Call, routine: _Routine) -> dict[int, Place | None]:
        """The storages that a backward piece may read: arguments, what forward made, tangents."""
        function = routine.function
        known: dict[int, Place | None] = {i.value: None for i in function.inputs}
        arguments = zip(function.activations(), call.arguments, strict=True)
        known.update({item.value: self.values.get(name) for item, name in arguments})
        for value in range(len(function.types)):
            place = (number, "forward", value)
            if place in self.born and value not in routine.again:
                known[value] = place
        for output, name in zip(function.outputs, call.results, strict=False):
            if output.tangent is not None:
                known[output.tangent] = self.gradients.get(name)
        return known

    def add(self, name: str, place: Place, total: Place) -> None:
        """The gradient of a value read by several calls: their sums, one after the other."""
        have = self.gradients.get(name)
        if have is None:
            self.gradients[name] = place
            return
        self.born[total] = (self.now, self.born[have][1])
        self.last[have] = self.last[place] = self.last[total] = self.now + 1
        self.gradients[name] = total
        self.now += 1

    def run(
        self,
        ops: Iterable[Op],
        number: int,
        piece: str,
        routine: _Routine,
        known: dict[int, Place | None],
    ) -> None:
        """One piece; `known` maps values to storages, None where they live elsewhere."""
        for op in ops:
            for value in (r for r in op.results if r >= 0):
                root = routine.root[value]
                if root == value:
                    made = known[value] = (number, piece, value)
                    self.born[made] = (self.now, routine.bytes(value))
                    self.last[made] = self.now + 1
            for value in op.operands():
                place = known.get(routine.root[value])
                if place is not None:
                    self.last[place] = self.now + 1
            self.now += 1

    def buffers(self, alignment: int) -> Iterable[Buffer]:
        for place, (born, size) in self.born.items():
            name = "{}.{}.{}".format(*place)
            yield Buffer(name, born, self.last[place], -(-size // alignment) * alignment)
