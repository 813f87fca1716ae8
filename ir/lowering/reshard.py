"""Between calls: how a value lies where it is made and where it is taken, and what brings it over.

Calls of one strategy agree, so nothing happens there. Where two strategies meet, the collectives of
`ir.grid` run before the call that takes the value; its gradient goes the other way after that call's
backward.
"""

from __future__ import annotations

from math import prod

from ..analysis.dataflow import Flow
from ..errors import MismatchError
from ..layout import REPLICATE, Layout, local_factors, local_type
from ..mesh import Axis, Mesh
from ..model import Input, Model, Output
from ..plan.plan import Plan, Sharding
from ..program import StageValue
from .common_mesh import Lying, Passage, lying, passage
from .localize import MICRO


class Between:
    """The values between the calls of one plan, on its grid with micro-batches outside."""

    def __init__(self, plan: Plan, model: Model, found: Flow) -> None:
        self.plan, self.model, self.flow = plan, model, found
        self.grid = Mesh((Axis(MICRO, plan.micro_batches), *plan.mesh.axes))
        self.functions = {f.name: f for f in model.functions}
        self.once = model.once()
        self.makers = {
            name: (number, position)
            for number, call in enumerate(model.calls)
            for position, name in enumerate(call.results)
        }

    def lying(self, name: str) -> Lying:
        """How a value lies as it is made, or as the batch brings it: as its first taker wants it."""
        if name in self.makers:
            number, output, sharding = self.made(name)
            position = self.makers[name][1]
            return self.on_grid(number, output.value, sharding.boundary.outputs[position])
        for number, call in enumerate(self.model.calls):
            if name in call.arguments:
                return self.taken(number, call.arguments.index(name))
        item = next(i for i in self.model.inputs if i.name == name)
        whole: Layout = (REPLICATE,) * len(self.grid.axes)
        return Lying(item.type, tuple((size,) for size in item.type.shape), whole)

    def forward(self, call: int, position: int) -> Passage:
        """What brings an argument to a call."""
        name = self.model.calls[call].arguments[position]
        return self.pass_(name, self.lying(name), self.taken(call, position))

    def backward(self, call: int, position: int) -> Passage:
        """What brings an argument's gradient from a call's backward to the call that made it."""
        name = self.model.calls[call].arguments[position]
        if name not in self.makers:
            raise MismatchError(f"{name} comes from the batch: it has no gradient")
        item, sharding, index = self.argument(call, position)
        number, output, maker = self.made(name)
        tangent = maker.boundary.tangents[self.makers[name][1]]
        gradient = sharding.boundary.gradients[index]
        assert gradient is not None
        assert item.gradient is not None
        assert tangent is not None
        assert output.tangent is not None
        return self.pass_(
            name,
            self.on_grid(call, item.gradient, gradient),
            self.on_grid(number, output.tangent, tangent),
        )

    def taken(self, call: int, position: int) -> Lying:
        item, sharding, index = self.argument(call, position)
        return self.on_grid(call, item.value, sharding.boundary.inputs[index])

    def argument(self, call: int, position: int) -> tuple[Input, Sharding, int]:
        """The function's input that an argument fills, with its number among all inputs."""
        function = self.functions[self.model.calls[call].function]
        item = function.activations()[position]
        return item, self.sharding(call), function.inputs.index(item)

    def made(self, name: str) -> tuple[int, Output, Sharding]:
        number, position = self.makers[name]
        function = self.functions[self.model.calls[number].function]
        return number, function.outputs[position], self.sharding(number)

    def sharding(self, call: int) -> Sharding:
        return self.plan.shardings[self.plan.layers_of(call).sharding]

    def on_grid(self, call: int, value: int, layout: Layout) -> Lying:
        sharding = self.sharding(call)
        function, axes = self.functions[sharding.function], self.flow.axes[sharding.function]
        return lying(value, layout, function, axes, sharding.mesh, self.grid)

    def pass_(self, name: str, source: Lying, target: Lying) -> Passage:
        way = passage(source, target, self.grid)
        if way is None:
            raise MismatchError(
                f"{name} of {list(source.type.shape)} cannot pass from {source.layout} to "
                f"{target.layout} on {self.grid}: its sizes do not divide"
            )
        return way

    def micro(self, name: str) -> tuple[int, int] | None:
        """Where a value made once per step is cut into micro-batches: (dim, elements outside)."""
        made = self.lying(name)
        state = made.layout[0]
        if not isinstance(state, tuple) or self.plan.micro_batches == 1:
            return None
        dim, part = state
        return dim, prod(local_factors(made.factors, made.layout, self.grid)[dim][:part])

    def crossing(self, piece: int) -> tuple[StageValue, ...]:
        """Values that piece `piece` of the model sends on: made in it or before, used after it; none
        where it is the last one."""
        border = self.plan.pieces[piece][1]
        calls = self.model.calls
        used = {n for c in calls[border:] for n in c.arguments}
        return tuple(
            self.value(name)
            for number, call in enumerate(calls[:border])
            if number not in self.once
            for name in call.results
            if name in used
        )

    def value(self, name: str) -> StageValue:
        """A value that a call makes, as it lies there."""
        _, output, sharding = self.made(name)
        kind = self.functions[sharding.function].types[output.value]
        factors = self.flow.axes[sharding.function].factors[output.value]
        layout = sharding.boundary.outputs[self.makers[name][1]]
        local = local_type(kind, factors, layout, sharding.mesh)
        return StageValue(name, local, output.tangent is not None)

    def calls(self, piece: int) -> list[int]:
        """The calls of piece `piece` of the model, but those that run once per step."""
        first, last = self.plan.pieces[piece]
        return [number for number in range(first, last) if number not in self.once]

    def sent(self, piece: int) -> tuple[StageValue, ...]:
        """What a piece gives: values for the next one, or the loss."""
        return self.crossing(piece) or (self.value(self.model.loss),)

    def early(self, stage: int) -> tuple[str, ...]:
        """What a stage's pieces read of the batch, or of what follows from it alone."""
        pieces = range(stage, len(self.plan.pieces), len(self.plan.stages))
        read = {value.name for piece in pieces for value in self.sent(piece)}
        read |= {n for p in pieces for i in self.calls(p) for n in self.model.calls[i].arguments}
        given = [item.name for item in self.model.inputs]
        given += [name for i in sorted(self.once) for name in self.model.calls[i].results]
        return tuple(name for name in given if name in read)

    def ahead(self, stage: int) -> list[int]:
        """The calls that depend on the batch alone and that a stage runs before all others."""
        live, found = set(self.early(stage)), list[int]()
        for number in sorted(self.once, reverse=True):
            call = self.model.calls[number]
            if live.intersection(call.results):
                live.update(call.arguments)
                found.append(number)
        return found[::-1]
