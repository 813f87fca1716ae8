"""The buffers of a training step on a device of one stage of a plan, in the order of its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...cost_model.communication.stage_transfer import hop_program, value_bytes
from ...ir.analysis.dataflow import flow
from ...ir.layout import local_type
from ...ir.lowering.common_mesh import Passage
from ...ir.lowering.reshard import Between
from ...ir.model import Model
from ...ir.plan.interleave import Step, beside, rows
from ...ir.plan.plan import HOSTED, Layers, Plan
from ...ir.plan.strategy import ROLES
from ...ir.program import StageValue
from .call_storage import Routine
from .lifetimes import ALIGNMENT_BYTES, StepBuffers
from .walk import Calls, Sizes

ALL = "all"  # micro-batches at once


def stage_buffers(
    plan: Plan, model: Model, number: int, alignment_bytes: int = ALIGNMENT_BYTES
) -> StepBuffers:
    """Every buffer of a step on a device of stage `number`: what its calls make, what the stage receives
    and sends, weights that are gathered for a call.

    `model` is what was planned, in the plan's precision. Weights, their gradients, optimizer states and
    the batch live elsewhere. Names say where a buffer is made: micro-batch, call, piece, value.
    """
    return _Walk(_Routines(plan, model), number).step(alignment_bytes)


def plan_buffers(
    plan: Plan, model: Model, alignment_bytes: int = ALIGNMENT_BYTES
) -> Iterator[StepBuffers]:
    """As `stage_buffers`, of one stage after the other; what they share is made once."""
    routines = _Routines(plan, model)
    for number in range(len(plan.stages)):
        yield _Walk(routines, number).step(alignment_bytes)


class _Routines:
    """The routines of a plan's calls, equal ones made once, and how values lie between them."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan, self.model = plan, model
        self.between = Between(plan, model, flow(model))
        self.made: dict[tuple[int, str], Routine] = {}

    def of(self, call: int) -> Routine:
        layers = self.plan.layers_of(call)
        key = layers.sharding, layers.memory
        if key not in self.made:
            self.made[key] = self.make(layers)
        return self.made[key]

    def make(self, layers: Layers) -> Routine:
        plan, sharding = self.plan, self.plan.shardings[layers.sharding]
        function = self.model.function(sharding.function)
        axes = self.between.flow.axes[function.name]
        whole = local = sharding.form(axes).local(function)
        if plan.division_of(layers) is not None:
            local = plan.form_of(layers, function, axes).local(function)
        gathered = any("parameter" in ROLES[role].shards for role, _ in sharding.strategy.axes)
        held = (i for i in whole.inputs if i.kind == "parameter")
        weights = sum(whole.types[i.value].bytes for i in held) if gathered else 0
        return Routine(local, layers.variant, whole, layers.memory in HOSTED, weights)


class _Walk:
    """One way along the row of a stage, as `runtime.schedule` goes it."""

    def __init__(self, routines: _Routines, number: int) -> None:
        self.plan, self.between, self.number = routines.plan, routines.between, number
        plan, between, self.stages = self.plan, self.between, len(self.plan.stages)
        self.early, self.program = between.early(number), hop_program(plan)
        table = rows(plan.schedule, self.stages, plan.micro_batches, plan.chunks)
        self.row = table[number]
        self.places = [{step: at for at, step in enumerate(row)} for row in table]
        self.pending: dict[int, dict[Step, list[str]]] = {n: {} for n in range(self.stages)}
        pieces = range(number, len(plan.pieces), self.stages)
        own = [*between.ahead(number), *(i for piece in pieces for i in between.calls(piece))]
        self.calls = Calls(
            routines.model,
            {call: routines.of(call) for call in own},
            self.forth,
            self.back,
            plan.cluster.device.host_copies_hide,
        )
        self.life = self.calls.life

    def forth(self, call: int, position: int) -> Sizes:
        return self.sizes(self.between.forward(call, position))

    def back(self, call: int, position: int) -> Sizes:
        return self.sizes(self.between.backward(call, position))

    def sizes(self, way: Passage) -> Sizes:
        grid = self.between.grid
        return [local_type(way.type, way.factors, s.after, grid).bytes for s in way.steps]

    def step(self, alignment_bytes: int) -> StepBuffers:
        for call in self.between.ahead(self.number):
            self.calls.forward(ALL, call)
        for step in self.row:
            kind, chunk, micro = step
            piece = chunk * self.stages + self.number
            self.life.begin()
            if kind == "F":
                self.forward(step, str(micro), piece)
            else:
                self.backward(step, str(micro), piece)
        for neighbour in range(self.stages):
            self.release(neighbour, len(self.places[neighbour]))
        self.life.hold(*(place for (m, _), place in self.calls.values.items() if m == ALL))
        return self.life.step(alignment_bytes)

    def forward(self, step: Step, micro: str, piece: int) -> None:
        calls, between = self.calls, self.between
        if piece:
            received = between.crossing(piece - 1)
            places = self.receive(step, -1, received, f"{micro}.{piece}.received")
            calls.values.update(
                ((micro, v.name), at) for v, at in zip(received, places, strict=True)
            )
        self.cut(micro, piece)
        for call in between.calls(piece):
            calls.forward(micro, call)
        leaving = [
            (value, calls.values.get((micro, value.name))) for value in between.crossing(piece)
        ]
        self.send(step, 1, leaving, f"{micro}.{piece}.sent")

    def backward(self, step: Step, micro: str, piece: int) -> None:
        calls, between = self.calls, self.between
        wanted = [value for value in between.crossing(piece) if value.gradient]
        places = self.receive(step, 1, wanted, f"{micro}.{piece}.given")
        calls.gradients.update(((micro, v.name), at) for v, at in zip(wanted, places, strict=True))
        for call in reversed(between.calls(piece)):
            if calls.routines[call].function.differentiable:
                calls.backward(micro, call)
        if piece:
            back = [value for value in between.crossing(piece - 1) if value.gradient]
            leaving = [(value, calls.gradients.pop((micro, value.name), None)) for value in back]
            self.send(step, -1, leaving, f"{micro}.{piece}.returned")

    def cut(self, micro: str, piece: int) -> None:
        """The part of a micro-batch of what comes from the batch alone."""
        values = self.calls.values
        for name in self.early:
            whole = values.get((ALL, name))
            if self.plan.micro_batches > 1 and (micro, name) not in values:
                whole = self.life.make(f"{micro}.{piece}.cut {name}", self.part(name))
            values[micro, name] = whole

    def part(self, name: str) -> int:
        """Bytes of a value of the batch in one micro-batch."""
        lying = self.between.lying(name)
        return local_type(lying.type, lying.factors, lying.layout, self.between.grid).bytes

    def receive(self, step: Step, way: int, values: Iterable[StageValue], prefix: str) -> list[str]:
        """What a neighbour made; it has by then received all it needed before."""
        values = list(values)
        if values:
            neighbour, other = beside(step, self.number, self.stages, way)
            self.release(neighbour, self.places[neighbour][other])
        return [self.life.make(f"{prefix} {v.name}", v.type.bytes) for v in values]

    def send(
        self, step: Step, way: int, values: Iterable[tuple[StageValue, str | None]], prefix: str
    ) -> None:
        """Values, or their messages where they travel compressed, stay until they are received."""
        leaving = []
        for value, place in values:
            sent = value_bytes(value.type, self.program)
            if place is None or sent != value.type.bytes:
                place = self.life.turn(place, f"{prefix} {value.name}", sent)
            self.life.hold(place)
            leaving.append(place)
        if leaving:
            neighbour, other = beside(step, self.number, self.stages, way)
            self.pending[neighbour][other] = leaving

    def release(self, neighbour: int, before: int) -> None:
        """Let go of what the neighbour has used up to this place in its row."""
        pending, places = self.pending[neighbour], self.places[neighbour]
        for step in [s for s in pending if places[s] <= before]:
            self.life.hold(*pending.pop(step))
