"""Layouts of values between calls, and the resharding from producer to consumer.

Calls of one strategy agree, so nothing happens there. Where two strategies meet, the collectives of
`common_mesh` run before the call that consumes the value; its gradient is resharded in the other
direction after that call's backward.
"""

from __future__ import annotations

from math import prod

from ..analysis.dataflow import Dataflow
from ..errors import MismatchError
from ..layout import REPLICATE, Layout, local_factors, local_type
from ..mesh import MICRO, Axis, Mesh
from ..model import Input, Model, Output
from ..plan.plan import Plan
from ..plan.sharding import Sharding
from ..program import StageValue
from .common_mesh import Resharding, TensorLayout, resharding, tensor_layout


class BoundaryLayouts:
    """Layouts and reshardings between the calls of a plan, on its mesh with micro-batches outermost."""

    def __init__(self, plan: Plan, model: Model, dataflow: Dataflow) -> None:
        self.plan, self.model, self.flow = plan, model, dataflow
        self.mesh = Mesh((Axis(MICRO, plan.micro_batches), *plan.mesh.axes))
        self.functions = {f.name: f for f in model.functions}
        self.batch_only_calls = model.batch_only_calls()
        self.producers = {
            name: (number, position)
            for number, call in enumerate(model.calls)
            for position, name in enumerate(call.results)
        }

    def producer_layout(self, name: str) -> TensorLayout:
        """Layout of a value where it is produced; for batch inputs, the layout of the first consumer."""
        if name in self.producers:
            number, output, sharding = self.producer(name)
            position = self.producers[name][1]
            return self.on_mesh(number, output.value, sharding.boundary.outputs[position])
        for number, call in enumerate(self.model.calls):
            if name in call.arguments:
                return self.consumer_layout(number, call.arguments.index(name))
        item = next(i for i in self.model.inputs if i.name == name)
        replicated: Layout = (REPLICATE,) * len(self.mesh.axes)
        return TensorLayout(item.type, tuple((size,) for size in item.type.shape), replicated)

    def forward_resharding(self, call: int, position: int) -> Resharding:
        """Resharding of an argument before a call."""
        name = self.model.calls[call].arguments[position]
        return self.resharding(
            name, self.producer_layout(name), self.consumer_layout(call, position)
        )

    def backward_resharding(self, call: int, position: int) -> Resharding:
        """Resharding of an argument's gradient, from a call's backward to the producer's.

        Raises MismatchError for a value of the batch, which has no gradient.
        """
        name = self.model.calls[call].arguments[position]
        if name not in self.producers:
            raise MismatchError(f"{name} comes from the batch: it has no gradient")
        item, sharding, index = self.argument(call, position)
        number, output, producer = self.producer(name)
        tangent = producer.boundary.tangents[self.producers[name][1]]
        gradient = sharding.boundary.gradients[index]
        assert gradient is not None
        assert item.gradient is not None
        assert tangent is not None
        assert output.tangent is not None
        return self.resharding(
            name,
            self.on_mesh(call, item.gradient, gradient),
            self.on_mesh(number, output.tangent, tangent),
        )

    def consumer_layout(self, call: int, position: int) -> TensorLayout:
        """Layout in which a call wants its argument."""
        item, sharding, index = self.argument(call, position)
        return self.on_mesh(call, item.value, sharding.boundary.inputs[index])

    def argument(self, call: int, position: int) -> tuple[Input, Sharding, int]:
        """The input that an argument fills, the call's sharding, and the input's index."""
        function = self.functions[self.model.calls[call].function]
        item = function.activations()[position]
        return item, self.sharding(call), function.inputs.index(item)

    def producer(self, name: str) -> tuple[int, Output, Sharding]:
        """The call that produces a value, the function's output, and the call's sharding."""
        number, position = self.producers[name]
        function = self.functions[self.model.calls[number].function]
        return number, function.outputs[position], self.sharding(number)

    def sharding(self, call: int) -> Sharding:
        """The sharding of a call."""
        return self.plan.shardings[self.plan.layers_of(call).sharding]

    def on_mesh(self, call: int, value: int, layout: Layout) -> TensorLayout:
        """A layout on a call's own mesh as one on the common mesh."""
        sharding = self.sharding(call)
        function, axes = self.functions[sharding.function], self.flow.axes[sharding.function]
        return tensor_layout(value, layout, function, axes, sharding.mesh, self.mesh)

    def resharding(self, name: str, source: TensorLayout, target: TensorLayout) -> Resharding:
        """The collectives from `source` to `target`; raises MismatchError where sizes do not divide."""
        steps = resharding(source, target, self.mesh)
        if steps is None:
            raise MismatchError(
                f"{name} of {list(source.type.shape)} cannot pass from {source.layout} to "
                f"{target.layout} on {self.mesh}: its sizes do not divide"
            )
        return steps

    def micro_batch_slice(self, name: str) -> tuple[int, int] | None:
        """Where a batch-only value is sliced into micro-batches: (dim, elements outside), else None."""
        produced = self.producer_layout(name)
        state = produced.layout[0]
        if not isinstance(state, tuple) or self.plan.micro_batches == 1:
            return None
        dim, factor = state
        local = local_factors(produced.factors, produced.layout, self.mesh)
        return dim, prod(local[dim][:factor])

    def stage_transfers(self, chunk: int) -> tuple[StageValue, ...]:
        """Values that model chunk `chunk` sends on: produced in it or before, used after it."""
        border = self.plan.model_chunks[chunk][1]
        calls = self.model.calls
        used = {n for c in calls[border:] for n in c.arguments}
        return tuple(
            self.stage_value(name)
            for number, call in enumerate(calls[:border])
            if number not in self.batch_only_calls
            for name in call.results
            if name in used
        )

    def stage_value(self, name: str) -> StageValue:
        """A value with its per-device type where it is produced."""
        _, output, sharding = self.producer(name)
        type_ = self.functions[sharding.function].types[output.value]
        factors = self.flow.axes[sharding.function].factors[output.value]
        layout = sharding.boundary.outputs[self.producers[name][1]]
        local = local_type(type_, factors, layout, sharding.mesh)
        return StageValue(name, local, output.tangent is not None)

    def micro_batch_calls(self, chunk: int) -> list[int]:
        """The calls of a model chunk that run for every micro-batch."""
        first, last = self.plan.model_chunks[chunk]
        return [number for number in range(first, last) if number not in self.batch_only_calls]

    def chunk_outputs(self, chunk: int) -> tuple[StageValue, ...]:
        """Values that a model chunk returns: those for the next one, or the loss."""
        return self.stage_transfers(chunk) or (self.stage_value(self.model.loss),)

    def batch_only_values(self, stage: int) -> tuple[str, ...]:
        """Batch inputs and batch-only results that the chunks of a stage read."""
        chunks = range(stage, len(self.plan.model_chunks), len(self.plan.stages))
        read = {value.name for chunk in chunks for value in self.chunk_outputs(chunk)}
        read |= {
            n
            for c in chunks
            for i in self.micro_batch_calls(c)
            for n in self.model.calls[i].arguments
        }
        available = [item.name for item in self.model.inputs]
        available += [
            name for i in sorted(self.batch_only_calls) for name in self.model.calls[i].results
        ]
        return tuple(name for name in available if name in read)

    def hoisted_calls(self, stage: int) -> list[int]:
        """Batch-only calls that a stage runs once per step, before all others."""
        live, calls = set(self.batch_only_values(stage)), list[int]()
        for number in sorted(self.batch_only_calls, reverse=True):
            call = self.model.calls[number]
            if live.intersection(call.results):
                live.update(call.arguments)
                calls.append(number)
        return calls[::-1]
