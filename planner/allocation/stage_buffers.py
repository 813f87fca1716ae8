"""Buffers of a training step on a device of one pipeline stage, in the order of its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...cost_model.communication.stage_transfer import transfer_program, value_bytes
from ...ir.analysis.bound_sharding import bind
from ...ir.analysis.dataflow import analyse_dataflow
from ...ir.lowering.chunk import bind_layers
from ...ir.lowering.common_mesh import Resharding
from ...ir.lowering.localize import localize
from ...ir.lowering.plan_layouts import PlanLayouts
from ...ir.model.layout import local_type
from ...ir.model.model import Model
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.plan import Layers, Plan
from ...ir.plan.program import StageValue
from ...ir.plan.schedules.chunk_map import ScheduleStep
from ...ir.plan.schedules.registry import build_rows, splits_backward
from ...ir.plan.strategy import ROLES
from .call_storage import CallStorage
from .lifetimes import ALIGNMENT_BYTES, StepBuffers
from .walk import CallWalk, Sizes

ALL = "all"  # micro-batches at once


def stage_buffers(
    plan: Plan, model: Model, number: int, alignment_bytes: int = ALIGNMENT_BYTES
) -> StepBuffers:
    """Buffers of a step on a device of stage `number`: values of its calls, stage transfers, and
    weights gathered for a call.

    `model` is the planned model in the plan's precision. Weights, their gradients, optimizer states
    and the batch are not included. Names give the origin: micro-batch, call, direction, value.
    """
    return _StageWalk(_PlanCalls(plan, model), number).step(alignment_bytes)


def plan_buffers(
    plan: Plan, model: Model, alignment_bytes: int = ALIGNMENT_BYTES
) -> Iterator[StepBuffers]:
    """`stage_buffers` of every stage in turn; shared analyses are computed once."""
    storages = _PlanCalls(plan, model)
    for number in range(len(plan.stages)):
        yield _StageWalk(storages, number).step(alignment_bytes)


class _PlanCalls:
    """Storages of a plan's calls, equal ones computed once, and the layouts between calls."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan, self.model = plan, model
        self.layouts = PlanLayouts(plan, analyse_dataflow(model))
        self.storages: dict[tuple[int, MemoryAction], CallStorage] = {}

    def of(self, call: int) -> CallStorage:
        layers = self.plan.layers_of(call)
        key = layers.sharding, layers.memory
        if key not in self.storages:
            self.storages[key] = self.make(layers)
        return self.storages[key]

    def make(self, layers: Layers) -> CallStorage:
        plan, sharding = self.plan, self.plan.shardings[layers.sharding]
        function = self.model.function(sharding.function)
        axes = self.layouts.flow.axes[function.name]
        full = local = localize(bind(sharding, function, axes))
        if plan.chunking_of(layers) is not None:
            local = localize(bind_layers(plan, layers, function, axes))
        gathered = any("parameter" in ROLES[role].shards for role, _ in sharding.strategy.axes)
        parameters = (i for i in full.inputs if i.kind == "parameter")
        weights = sum(full.types[i.value].bytes for i in parameters) if gathered else 0
        splits = splits_backward(plan.schedule) and local is full
        return CallStorage(local, layers.variant, full, layers.memory.on_host, weights, splits)


class _StageWalk:
    """Walk of one stage's schedule, in the order in which the runtime executes it."""

    def __init__(self, storages: _PlanCalls, number: int) -> None:
        self.plan, self.layouts, self.number = storages.plan, storages.layouts, number
        plan, layouts, self.stages = self.plan, self.layouts, len(self.plan.stages)
        self.batch_only, self.program = layouts.batch_only_values(number), transfer_program(plan)
        table = build_rows(plan.schedule, self.stages, plan.micro_batches, plan.chunks_per_stage)
        self.steps = table[number]
        self.positions = [
            {_transfer_step(step): at for at, step in enumerate(steps) if step[0] != "W"}
            for steps in table
        ]
        self.pending: dict[int, dict[ScheduleStep, list[str]]] = {n: {} for n in range(self.stages)}
        calls = [
            *layouts.hoisted_calls(number),
            *(
                i
                for model_chunk in plan.chunk_map.numbers(number)
                for i in layouts.micro_batch_calls(model_chunk)
            ),
        ]
        self.calls = CallWalk(
            storages.model,
            {call: storages.of(call) for call in calls},
            self.forward_resharding,
            self.backward_resharding,
            plan.cluster.device.host_copies_hide,
        )
        self.life = self.calls.life

    def forward_resharding(self, call: int, position: int) -> Sizes:
        return self.sizes(self.layouts.forward_resharding(call, position))

    def backward_resharding(self, call: int, position: int) -> Sizes:
        return self.sizes(self.layouts.backward_resharding(call, position))

    def sizes(self, direction: Resharding) -> Sizes:
        grid = self.layouts.mesh
        return [
            local_type(direction.type, direction.factors, s.after, grid).bytes
            for s in direction.steps
        ]

    def step(self, alignment_bytes: int) -> StepBuffers:
        for call in self.layouts.hoisted_calls(self.number):
            self.calls.forward(ALL, call)
        for step in self.steps:
            kind, chunk, micro = step
            model_chunk = self.plan.chunk_map.number(self.number, chunk)
            self.life.begin_segment()
            if kind == "F":
                self.forward(step, str(micro), model_chunk)
            elif kind != "W":
                self.backward(_transfer_step(step), str(micro), model_chunk)
            if kind in "BW":
                self.weights(str(micro), model_chunk)
        for neighbour in range(self.stages):
            self.release(neighbour, len(self.positions[neighbour]))
        self.life.extend(*(place for (m, _), place in self.calls.values.items() if m == ALL))
        return self.life.finish(alignment_bytes)

    def forward(self, step: ScheduleStep, micro: str, model_chunk: int) -> None:
        calls, layouts = self.calls, self.layouts
        if model_chunk:
            received = layouts.stage_transfers(model_chunk - 1)
            received_storages = self.receive(step, -1, received, f"{micro}.{model_chunk}.received")
            calls.values.update(
                ((micro, v.name), at) for v, at in zip(received, received_storages, strict=True)
            )
        self.slice_batch_only(micro, model_chunk)
        for call in layouts.micro_batch_calls(model_chunk):
            calls.forward(micro, call)
        leaving = [
            (value, calls.values.get((micro, value.name)))
            for value in layouts.stage_transfers(model_chunk)
        ]
        self.send(step, 1, leaving, f"{micro}.{model_chunk}.sent")

    def backward(self, step: ScheduleStep, micro: str, model_chunk: int) -> None:
        calls, layouts = self.calls, self.layouts
        wanted = [value for value in layouts.stage_transfers(model_chunk) if value.gradient]
        received_storages = self.receive(step, 1, wanted, f"{micro}.{model_chunk}.given")
        calls.gradients.update(
            ((micro, v.name), at) for v, at in zip(wanted, received_storages, strict=True)
        )
        for call in reversed(layouts.micro_batch_calls(model_chunk)):
            if calls.storages[call].function.differentiable:
                calls.backward(micro, call)
        if model_chunk:
            returned = [
                value for value in layouts.stage_transfers(model_chunk - 1) if value.gradient
            ]
            leaving = [
                (value, calls.gradients.pop((micro, value.name), None)) for value in returned
            ]
            self.send(step, -1, leaving, f"{micro}.{model_chunk}.returned")

    def weights(self, micro: str, model_chunk: int) -> None:
        """The part of backward that nothing waits for, of calls that run it apart."""
        for call in reversed(self.layouts.micro_batch_calls(model_chunk)):
            self.calls.backward_weights(micro, call)

    def slice_batch_only(self, micro: str, model_chunk: int) -> None:
        """Slice batch-only values for one micro-batch."""
        values = self.calls.values
        for name in self.batch_only:
            full = values.get((ALL, name))
            if self.plan.micro_batches > 1 and (micro, name) not in values:
                full = self.life.allocate(
                    f"{micro}.{model_chunk}.cut {name}", self.batch_only_bytes(name)
                )
            values[micro, name] = full

    def batch_only_bytes(self, name: str) -> int:
        """Bytes of a batch-only value in one micro-batch."""
        layout = self.layouts.producer_layout(name)
        return local_type(layout.type, layout.factors, layout.layout, self.layouts.mesh).bytes

    def receive(
        self, step: ScheduleStep, direction: int, values: Iterable[StageValue], prefix: str
    ) -> list[str]:
        """Receive values from a neighbouring stage, and release what it has consumed by then."""
        values = list(values)
        if values:
            neighbour, other = self.neighbour(step, direction)
            self.release(neighbour, self.positions[neighbour][other])
        return [self.life.allocate(f"{prefix} {v.name}", v.type.bytes) for v in values]

    def send(
        self,
        step: ScheduleStep,
        direction: int,
        values: Iterable[tuple[StageValue, str | None]],
        prefix: str,
    ) -> None:
        """Send values or compressed messages; they live until the neighbour receives them."""
        leaving: list[str] = []
        for value, place in values:
            sent, storage = value_bytes(value.type, self.program), place
            if storage is None or sent != value.type.bytes:
                storage = self.life.copy(place, f"{prefix} {value.name}", sent)
            self.life.extend(storage)
            leaving.append(storage)
        if leaving:
            neighbour, other = self.neighbour(step, direction)
            self.pending[neighbour][other] = leaving

    def neighbour(self, step: ScheduleStep, direction: int) -> tuple[int, ScheduleStep]:
        near = self.plan.chunk_map.neighbour(self.number, step, direction)
        assert near is not None, f"{step} is at an end of the model"
        return near

    def release(self, neighbour: int, before: int) -> None:
        """Release the sends that the neighbour has consumed by `before` in its schedule."""
        pending, positions = self.pending[neighbour], self.positions[neighbour]
        for step in [s for s in pending if positions[s] <= before]:
            self.life.extend(*pending.pop(step))


def _transfer_step(step: ScheduleStep) -> ScheduleStep:
    """The step by which both ends know a transfer: a neighbour may run backward in one part or two."""
    return (step[0] if step[0] == "F" else "B", *step[1:])
