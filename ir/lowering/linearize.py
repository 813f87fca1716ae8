"""Linearization: one training step as one list of operators, with every call of the model inlined.

Forward of all calls, backward of all calls in reverse, sums of gradients where a tensor has several.
Views own no memory: `roots` says whose memory they alias. Placement decides about `PlacementUnit`s: a
parameter or buffer, an operator that is not a view, or the update of a parameter or buffer.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from ..analysis.liveness import Needed, is_view, read_values, storage_roots
from ..analysis.model_graph import ModelGraph
from ..model.model import Call, Function, Model, Op, Ref, map_refs
from ..model.tensor import TensorType


class OpOrigin(msgspec.Struct, frozen=True):
    """The module path of an operator of the step; whether it is of backward; whether it is a view."""

    path: str
    backward: bool
    view: bool


class TrainingStep(msgspec.Struct, frozen=True):
    """A training step. `function` has its operators, forward first, `origins` one for each.

    Values that no operator computes: `state_tensors` and tensors of the `batch` by name, `keys` that
    seed a call's random operators by the call's number, and `fills`, constant tensors (the gradient
    of the loss, gradients of unread values). `gradients` and `updates` say which
    value is the gradient of a trained parameter and the next value of a buffer.
    """

    function: Function
    origins: tuple[OpOrigin, ...]
    state_tensors: dict[int, str]
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
        """For every value, the value whose memory it uses: itself, or the base of a view."""
        marked = zip(self.ops, self.origins, strict=True)
        return storage_roots(len(self.types), (op for op, origin in marked if origin.view))


class PlacementUnit(msgspec.Struct, frozen=True):
    """A unit that placement puts on one device: a state tensor, or operator number `op`.

    With `update` it is the update of the state tensor, which reads its gradient or next value.
    `reads`: state tensors and operator results that must be on the device.
    """

    name: str
    state_tensor: str = ""
    op: int = -1
    update: bool = False
    reads: tuple[int, ...] = ()


def units(step: TrainingStep, model: Model) -> tuple[PlacementUnit, ...]:
    """State tensors in the order of the model, operators in order, then updates."""
    roots = step.roots()
    names = {name: value for value, name in step.state_tensors.items()}
    computed = {v for op in step.ops for v in op.results if v >= 0 and roots[v] == v}
    placed = computed | step.state_tensors.keys()

    def reads(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(r for r in dict.fromkeys(roots[v] for v in values) if r in placed)

    units = [PlacementUnit(p.name, state_tensor=p.name) for p in model.parameters]
    for number, (op, mark) in enumerate(zip(step.ops, step.origins, strict=True)):
        if not mark.view:
            name = ".".join(part for part in (mark.path, op.target) if part)
            units.append(PlacementUnit(name, op=number, reads=reads(op.operands())))
    for p in model.parameters:
        value = step.gradients.get(p.name, step.updates.get(p.name))
        if value is not None:
            inputs = reads((value, names[p.name])) if p.name in names else reads((value,))
            units.append(
                PlacementUnit(f"{p.name}: update", state_tensor=p.name, update=True, reads=inputs)
            )
    return tuple(units)


def linearize(model: Model) -> TrainingStep:
    """Inline all calls of a model; operators that no loss, gradient or buffer needs are left out."""
    writer = _Writer(model)
    for number, call in enumerate(model.calls):
        writer.forward(number, call)
    border = len(writer.ops)
    loss_type = writer.types[writer.named[model.loss]]
    writer.gradients[model.loss].append(writer.fill(loss_type, 1.0))
    for number, call in reversed(list(enumerate(model.calls))):
        writer.backward(number, call)
    return writer.step(border)


class _Writer:
    """Numbers values anew: `environments` by call, `named` by the name of a value between calls."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = ModelGraph(model)
        self.views = {f.name: [is_view(op, f.types) for op in f.ops] for f in model.functions}
        self.types: list[TensorType] = []
        self.ops: list[Op] = []
        self.origins: list[OpOrigin] = []
        self.keys: dict[int, int] = {}
        self.fills: dict[int, float] = {}
        self.state = {p.name: self.new(p.type) for p in model.parameters}
        self.batch = {i.name: self.new(i.type) for i in model.inputs}
        self.named = dict(self.batch)
        self.environments: list[dict[int, int]] = []
        self.gradients: dict[str, list[int]] = defaultdict(list)
        self.state_gradients: dict[str, list[int]] = defaultdict(list)

    def new(self, type_: TensorType) -> int:
        self.types.append(type_)
        return len(self.types) - 1

    def fill(self, type_: TensorType, number: float) -> int:
        value = self.new(type_)
        self.fills[value] = number
        return value

    def forward(self, number: int, call: Call) -> None:
        function = self.graph.function(number)
        inputs = [self.state[n] for n in call.parameters] + [self.named[n] for n in call.arguments]
        if function.random:
            inputs.append(self.new(function.types[function.inputs[-1].value]))
            self.keys[inputs[-1]] = number
        values = {i.value: v for i, v in zip(function.inputs, inputs, strict=True)}
        self.environments.append(values)
        self.run(call, function, range(function.forward), values)
        for name, output in self.graph.results(number):
            self.named[name] = values[output.value]

    def backward(self, number: int, call: Call) -> None:
        function, values = self.graph.function(number), self.environments[number]
        if not any(self.gradients[name] for name in call.results):
            return  # the loss does not depend on it: its parameters have no gradient from here
        for name, output in self.graph.results(number):
            if output.tangent is not None:
                terms, type_ = self.gradients[name], function.types[output.tangent]
                values[output.tangent] = self.total(name, terms) if terms else self.fill(type_, 0.0)
        self.run(call, function, range(function.forward, len(function.ops)), values)
        for name, item in (*self.graph.parameters(number), *self.graph.arguments(number)):
            if item.gradient is not None:
                into = self.gradients if item.kind == "activation" else self.state_gradients
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
            self.origins.append(OpOrigin(path, backward, view))
            values.update((r, v) for r, v in zip(op.results, results, strict=True) if r >= 0)

    def total(self, name: str, terms: list[int]) -> int:
        """The sum of all gradients of a tensor, one addition after the other."""
        while len(terms) > 1:
            one, other, *rest = terms
            result = self.new(self.types[one])
            path = f"{name}: sum of gradients"
            self.ops.append(Op("aten.add.Tensor", (Ref(one), Ref(other)), {}, (result,), path))
            self.origins.append(OpOrigin(path, True, False))
            terms = [result, *rest]
        return terms[0]

    def step(self, border: int) -> TrainingStep:
        reached = self.graph.reached
        trained = {p.name for p in self.model.parameters if p.trainable and p.name in reached}
        gradients = {n: self.total(n, p) for n, p in self.state_gradients.items() if n in trained}
        updates = {b: self.named[r] for call in self.model.calls for r, b in call.updates}
        wanted = {self.named[self.model.loss], *gradients.values(), *updates.values()}
        needed = Needed(self.ops, wanted)
        ops = tuple(needed.pruned(self.ops[number]) for number in needed.numbers)
        forward = sum(number < border for number in needed.numbers)
        read = read_values(ops) | wanted
        return TrainingStep(
            Function("step", tuple(self.types), (), (), ops, forward),
            tuple(self.origins[number] for number in needed.numbers),
            {v: n for n, v in self.state.items() if v in read},
            {v: n for n, v in self.batch.items() if v in read},
            {v: n for v, n in self.keys.items() if v in read},
            {v: n for v, n in self.fills.items() if v in read},
            gradients,
            updates,
            self.named[self.model.loss],
        )
