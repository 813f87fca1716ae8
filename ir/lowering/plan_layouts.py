"""What flows between the calls, model chunks and stages of a plan, and in which layouts."""

from __future__ import annotations

from math import prod

from ..analysis.dataflow import Dataflow
from ..model.layout import local_factors, local_type
from ..model.mesh import MICRO, Axis, Mesh
from ..plan.plan import Plan
from ..plan.program import StageValue
from ..plan.sharding import Sharding
from .reshard import BoundaryLayouts


class PlanLayouts(BoundaryLayouts):
    """Layouts between the calls of a plan, and the values that its model chunks pass on."""

    def __init__(self, plan: Plan, flow: Dataflow) -> None:
        mesh = Mesh((Axis(MICRO, plan.micro_batches), *plan.mesh.axes))
        super().__init__(flow, self.sharding_of, mesh)
        self.plan = plan

    def sharding_of(self, call: int) -> Sharding:
        """The sharding of a call."""
        return self.plan.shardings[self.plan.layers_of(call).sharding]

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
        calls = self.graph.model.calls
        used = {n for c in calls[border:] for n in c.arguments}
        return tuple(
            self.stage_value(name)
            for number, call in enumerate(calls[:border])
            if number not in self.graph.batch_only
            for name in call.results
            if name in used
        )

    def stage_value(self, name: str) -> StageValue:
        """A value with its per-device type where it is produced."""
        maker = self.graph.maker(name)
        assert maker is not None, f"{name} comes from the batch"
        function, sharding = self.graph.function(maker.call), self.sharding(maker.call)
        output = function.outputs[maker.position]
        type_, factors = function.types[output.value], self.flow.axes[function.name].factors
        layout = sharding.boundary.outputs[maker.position]
        local = local_type(type_, factors[output.value], layout, sharding.mesh)
        return StageValue(name, local, output.tangent is not None)

    def micro_batch_calls(self, chunk: int) -> list[int]:
        """The calls of a model chunk that run for every micro-batch."""
        first, last = self.plan.model_chunks[chunk]
        return [number for number in range(first, last) if number not in self.graph.batch_only]

    def chunk_outputs(self, chunk: int) -> tuple[StageValue, ...]:
        """Values that a model chunk returns: those for the next one, or the loss."""
        return self.stage_transfers(chunk) or (self.stage_value(self.graph.model.loss),)

    def batch_only_values(self, stage: int) -> tuple[str, ...]:
        """Batch inputs and batch-only results that the chunks of a stage read."""
        chunks = self.plan.chunk_map.numbers(stage)
        read = {value.name for chunk in chunks for value in self.chunk_outputs(chunk)}
        read.update(self.graph.model.outputs)
        read |= {
            n
            for c in chunks
            for i in self.micro_batch_calls(c)
            for n in self.graph.model.calls[i].arguments
        }
        available = [item.name for item in self.graph.model.inputs]
        available += [
            name
            for i in sorted(self.graph.batch_only)
            for name in self.graph.model.calls[i].results
        ]
        return tuple(name for name in available if name in read)

    def hoisted_calls(self, stage: int) -> list[int]:
        """Batch-only calls that a stage runs once per step, before all others: those whose results it
        reads, and those that write buffers, which all stages have."""
        live, calls = set(self.batch_only_values(stage)), list[int]()
        for number in sorted(self.graph.batch_only, reverse=True):
            call = self.graph.model.calls[number]
            if call.updates or live.intersection(call.results):
                live.update(call.arguments)
                calls.append(number)
        return calls[::-1]
