"""One training step as one list of operators: every call of the model written out where it stands.

Forward of all calls, backward of all calls in reverse, sums of gradients where a tensor has several.
Views own no memory: `roots` says whose they look at. What placement and its programs are about is a
`Unit`: a held tensor, an operator that is not a view, or the update of a held tensor.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from .. import ops as _declarations  # noqa: F401  (fills the registry)
from ..loops import declaration, site_of
from ..model import Call, Function, Model, Op, Ref, map_refs
from ..tensor import TensorType


class Mark(msgspec.Struct, frozen=True):
    """Where an operator of the step comes from, whether it is of backward, whether a mere view."""

    path: str
    backward: bool
    view: bool


class Step(msgspec.Struct, frozen=True):
    """The step. `function` holds its operators over step values, forward first, `marks` one each.

    Values that no operator makes: `held` tensors and tensors of the `batch` by name, `keys` that
    seed a call's random operators by the call's number, and `fills`, which are one number (the
    gradient of the loss, gradients of what nothing reads). `gradients` and `updates` say which
    value is the gradient of a trained parameter and the next value of a buffer.
    """

    function: Function
    marks: tuple[Mark, ...]
    held: dict[int, str]
    batch: dict[int, str]
    keys: dict[int, int]
    fills: dict[int, float]
    gradients: dict[str, int]
    updates: dict[str, int]
    loss: int

    @property
    def types(self) -> tuple[TensorType, ...]:
        return self.function.types

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.function.ops

    def roots(self) -> list[int]:
        """For every value the value whose memory it is."""
        found = list(range(len(self.types)))
        for op, mark in zip(self.ops, self.marks, strict=True):
            if mark.view:
                for result in op.results:
                    if result >= 0:
                        found[result] = found[op.operands()[0]]
        return found


class Unit(msgspec.Struct, frozen=True):
    """What is put on a device: the held tensor `held`, operator number `op`, or, where both are
    given, nothing but the update of `held`, which reads its gradient or its next value.

    `reads` are the tensors that must be there: values that are held or that an operator makes.
    """

    name: str
    held: str = ""
    op: int = -1
    update: bool = False
    reads: tuple[int, ...] = ()


def units(step: Step, model: Model) -> tuple[Unit, ...]:
    """Held tensors as the model lists them, operators in order, then updates."""
    roots = step.roots()
    names = {name: value for value, name in step.held.items()}
    made = {v for op in step.ops for v in op.results if v >= 0 and roots[v] == v}
    placed = made | step.held.keys()

    def reads(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(r for r in dict.fromkeys(roots[v] for v in values) if r in placed)

    found = [Unit(p.name, held=p.name) for p in model.parameters]
    for number, (op, mark) in enumerate(zip(step.ops, step.marks, strict=True)):
        if not mark.view:
            name = ".".join(part for part in (mark.path, op.target) if part)
            found.append(Unit(name, op=number, reads=reads(op.operands())))
    for p in model.parameters:
        value = step.gradients.get(p.name, step.updates.get(p.name))
        if value is not None:
            there = reads((value, names[p.name])) if p.name in names else reads((value,))
            found.append(Unit(f"{p.name}: update", held=p.name, update=True, reads=there))
    return tuple(found)


def step_of(model: Model) -> Step:
    """Write a model's step out; operators that lead to no loss, gradient or buffer are left out."""
    made = _Writer(model)
    for number, call in enumerate(model.calls):
        made.forward(number, call)
    border = len(made.ops)
    made.gradients[model.loss].append(made.fill(made.types[made.named[model.loss]], 1.0))
    for number, call in reversed(list(enumerate(model.calls))):
        made.backward(number, call)
    return made.step(border)


class _Writer:
    """Numbers values anew: `environments` by call, `named` by the name of a value between calls."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.functions = {f.name: f for f in model.functions}
        self.views = {f.name: [_is_view(op, f) for op in f.ops] for f in model.functions}
        self.types: list[TensorType] = []
        self.ops: list[Op] = []
        self.marks: list[Mark] = []
        self.keys: dict[int, int] = {}
        self.fills: dict[int, float] = {}
        self.held = {p.name: self.new(p.type) for p in model.parameters}
        self.batch = {i.name: self.new(i.type) for i in model.inputs}
        self.named = dict(self.batch)
        self.environments: list[dict[int, int]] = []
        self.gradients: dict[str, list[int]] = defaultdict(list)
        self.held_gradients: dict[str, list[int]] = defaultdict(list)

    def new(self, type_: TensorType) -> int:
        self.types.append(type_)
        return len(self.types) - 1

    def fill(self, type_: TensorType, number: float) -> int:
        value = self.new(type_)
        self.fills[value] = number
        return value

    def forward(self, number: int, call: Call) -> None:
        function = self.functions[call.function]
        given = [self.held[n] for n in call.parameters] + [self.named[n] for n in call.arguments]
        if function.random:
            given.append(self.new(function.types[function.inputs[-1].value]))
            self.keys[given[-1]] = number
        values = {i.value: v for i, v in zip(function.inputs, given, strict=True)}
        self.environments.append(values)
        self.run(call, function, range(function.forward), values)
        for output, name in zip(function.outputs, call.results, strict=True):
            self.named[name] = values[output.value]

    def backward(self, number: int, call: Call) -> None:
        function, values = self.functions[call.function], self.environments[number]
        if not any(self.gradients[name] for name in call.results):
            return  # the loss does not depend on it: its parameters have no gradient from here
        for output, name in zip(function.outputs, call.results, strict=True):
            if output.tangent is not None:
                parts, type_ = self.gradients[name], function.types[output.tangent]
                values[output.tangent] = self.total(name, parts) if parts else self.fill(type_, 0.0)
        self.run(call, function, range(function.forward, len(function.ops)), values)
        names = (*call.parameters, *call.arguments)
        for name, item in zip(names, function.inputs, strict=False):
            if item.gradient is not None:
                into = self.gradients if item.kind == "activation" else self.held_gradients
                into[name].append(values[item.gradient])

    def run(self, call: Call, function: Function, places: range, values: dict[int, int]) -> None:
        for place in places:
            op = function.ops[place]
            results = [self.new(function.types[r]) if r >= 0 else -1 for r in op.results]
            args = tuple(map_refs(a, lambda v: Ref(values[v])) for a in op.args)
            kwargs = {k: map_refs(a, lambda v: Ref(values[v])) for k, a in op.kwargs.items()}
            path = ".".join(part for part in (call.path, op.scope) if part)
            self.ops.append(Op(op.target, args, kwargs, tuple(results), path))
            backward, view = place >= function.forward, self.views[function.name][place]
            self.marks.append(Mark(path, backward, view))
            values.update((r, v) for r, v in zip(op.results, results, strict=True) if r >= 0)

    def total(self, name: str, parts: list[int]) -> int:
        """The sum of all gradients of a tensor, one addition after the other."""
        while len(parts) > 1:
            one, other, *rest = parts
            result = self.new(self.types[one])
            path = f"{name}: sum of gradients"
            self.ops.append(Op("aten.add.Tensor", (Ref(one), Ref(other)), {}, (result,), path))
            self.marks.append(Mark(path, True, False))
            parts = [result, *rest]
        return parts[0]

    def step(self, border: int) -> Step:
        trained = {p.name for p in self.model.parameters if p.trainable}
        found = {n: self.total(n, p) for n, p in self.held_gradients.items() if n in trained}
        updates = {b: self.named[r] for call in self.model.calls for r, b in call.updates}
        wanted = {self.named[self.model.loss], *found.values(), *updates.values()}
        ops, marks, forward = self.needed(wanted, border)
        read = {v for op in ops for v in op.operands()} | wanted
        return Step(
            Function("step", tuple(self.types), (), (), tuple(ops), forward),
            tuple(marks),
            {v: n for n, v in self.held.items() if v in read},
            {v: n for n, v in self.batch.items() if v in read},
            {v: n for v, n in self.keys.items() if v in read},
            {v: n for v, n in self.fills.items() if v in read},
            found,
            updates,
            self.named[self.model.loss],
        )

    def needed(self, wanted: set[int], border: int) -> tuple[list[Op], list[Mark], int]:
        """The operators that lead to `wanted`, and how many of them are of forward."""
        live, kept = set(wanted), []
        for number in reversed(range(len(self.ops))):
            op = self.ops[number]
            if live.intersection(op.results):
                live.update(op.operands())
                kept.append(number)
        kept.reverse()
        ops = [self.ops[n] for n in kept]
        pruned = [
            msgspec.structs.replace(op, results=tuple(r if r in live else -1 for r in op.results))
            for op in ops
        ]
        return pruned, [self.marks[n] for n in kept], sum(n < border for n in kept)


def _is_view(op: Op, function: Function) -> bool:
    """Whether an operator only looks at the memory of the one tensor it reads."""
    if len(op.operands()) != 1:
        return False
    declared = declaration(site_of(op, function.types))
    return declared is not None and declared.work == "view"
