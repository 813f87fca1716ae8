"""The table of a program: names, sizes and layouts; all data that is not code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from msgspec.structs import replace

from ..ir.analysis.dataflow import Dataflow, analyse_dataflow
from ..ir.analysis.expert_weights import expert_axis, expert_weights
from ..ir.analysis.row_gradients import sparse_gradients
from ..ir.compression.registry import COMPRESSED_OPTIMIZER_ROLE, COMPRESSED_OPTIMIZERS
from ..ir.errors import MismatchError
from ..ir.files.json_files import digest
from ..ir.lowering.plan_layouts import PlanLayouts
from ..ir.model.layout import PARTIAL, REPLICATE, AxisPlacement, Factors, Layout
from ..ir.model.mesh import MICRO, Mesh
from ..ir.model.model import Model
from ..ir.plan.flat_shard import FULL
from ..ir.plan.plan import Layers, Plan
from ..ir.plan.program import (
    BatchTensor,
    CallRun,
    CompressedAxis,
    Names,
    NumberedName,
    ParameterSpec,
    ProgramOutput,
    ProgramTable,
)
from ..ir.plan.sharding import Sharding
from ..ir.plan.strategy import ROLES


def plan_table(plan: Plan, model: Model) -> ProgramTable:
    """The table of a plan's program, without the program."""
    dataflow = analyse_dataflow(model)
    return program_table(plan, model, dataflow, PlanLayouts(plan, dataflow), "")


def program_table(
    plan: Plan, model: Model, dataflow: Dataflow, layouts: PlanLayouts, source: str
) -> ProgramTable:
    """Everything a program of this plan needs to know."""
    _check_expert_slots(plan, model)
    runs = tuple(_run(layers, plan, model) for layers in plan.layers)
    return ProgramTable(
        model=model.name,
        model_digest=model.fingerprint(),
        plan_digest=plan.digest,
        cluster_digest=digest(plan.cluster),
        mesh=plan.mesh,
        meshes=tuple(strategy.mesh for strategy in plan.strategies),
        loss_mesh=_mesh(plan, _loss_call(dataflow)),
        stages=len(plan.stages),
        chunks_per_stage=plan.chunks_per_stage,
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        global_batch=plan.global_batch,
        precision=plan.precision,
        optimizer=plan.optimizer.name,
        state_tensors=_state_tensors(plan, model, dataflow, runs),
        calls=runs,
        batch=_batch(model, layouts),
        constants=model.constants,
        outputs=tuple(_output(name, plan, layouts) for name in model.outputs),
        stage_transfers=tuple(
            layouts.stage_transfers(chunk) for chunk in range(len(plan.model_chunks) - 1)
        ),
        source=source,
        compression=tuple(_compressed_axes(plan)),
        master_weights=plan.optimizer.master_weights,
        gradient_precision=plan.gradient_precision,
        neighbours=_neighbours(plan),
        expert_slots=plan.expert_slots,
        steps_on_host=plan.optimizer.on_host,
    )


def _check_expert_slots(plan: Plan, model: Model) -> None:
    """Raise MismatchError where ranks cannot have replicas of a plan's experts."""
    if not plan.expert_slots:
        return
    compressed = any(c.subject != "rows" for c in plan.compression)
    if plan.groups or compressed or plan.optimizer.name in COMPRESSED_OPTIMIZERS:
        raise MismatchError(
            "replicas of experts need stages of equal devices, and sums of gradients that are not "
            "compressed: plan without expert_slots, or without compression and unlike devices"
        )
    readers = Counter(name for call in model.calls for name in set(call.parameters))
    weights = {function.name: expert_weights(function) for function in model.functions}
    functions = {function.name: function for function in model.functions}
    for number, call in enumerate(model.calls):
        sharding = _sharding(plan, number)
        items = functions[call.function].state_inputs()
        for name, item, layout in zip(
            call.parameters, items, sharding.boundary.inputs, strict=False
        ):
            axis = expert_axis(layout, sharding.mesh)
            if item.kind != "parameter" or axis is None:
                continue
            split = [
                n
                for n, (one, state) in enumerate(zip(sharding.mesh.axes, layout, strict=True))
                if one.size > 1 and isinstance(state, tuple) and state[0] == 0
            ]
            problem = ""
            if item.value not in weights[call.function] or layout[axis] != (0, 0):
                problem = "other operators than those of experts read it"
            elif split != [axis] or readers[name] > 1:
                problem = "other axes split its experts" if split != [axis] else "layers share it"
            if problem:
                raise MismatchError(
                    f"{name} has experts on several ranks, and no replicas of them, since {problem}: "
                    "plan without expert_slots"
                )


def _loss_call(dataflow: Dataflow) -> int:
    maker = dataflow.graph.maker(dataflow.graph.model.loss)
    assert maker is not None
    return maker.call


def _neighbours(plan: Plan) -> tuple[dict[str, int], ...]:
    """Per strategy, ranks of a node along axes that send rows to experts, where they span nodes."""
    near = [
        {
            role: plan.cluster.neighbours_per_node(size, strategy.stride(role))
            for role, size in strategy.axes
            if ROLES[role].experts
        }
        for strategy in plan.strategies
    ]
    spanning = [
        {role: n for role, n in one.items() if 1 < n < strategy.size(role)}
        for one, strategy in zip(near, plan.strategies, strict=True)
    ]
    return tuple(spanning) if any(spanning) else ()


def _compressed_axes(plan: Plan) -> Iterator[CompressedAxis]:
    """Compressed axes by mesh and role."""
    if plan.optimizer.name in COMPRESSED_OPTIMIZERS:
        first = plan.strategies[0]
        near = (
            plan.cluster.neighbours_per_node(
                first.size(COMPRESSED_OPTIMIZER_ROLE), first.stride(COMPRESSED_OPTIMIZER_ROLE)
            )
            if first.size(COMPRESSED_OPTIMIZER_ROLE) > 1
            else 1
        )
        yield CompressedAxis(0, COMPRESSED_OPTIMIZER_ROLE, near, optimizer=plan.optimizer.name)
    for number, strategy in enumerate(plan.strategies):
        own = [c for c in plan.compression if c.strategy == strategy]
        for role in dict.fromkeys(c.role for c in own):
            programs = {c.subject: c.program for c in own if c.role == role}
            inner = plan.cluster.neighbours_per_node(strategy.size(role), strategy.stride(role))
            yield CompressedAxis(number, role, inner, **programs)


def _on_devices(layout: Layout, sharding: Sharding) -> Layout:
    """A function's layout on its strategy's devices: replicated over stages, micro-batches left out."""
    states: dict[str, AxisPlacement] = {
        axis.name: state for axis, state in zip(sharding.mesh.axes, layout, strict=True)
    }
    return tuple(states.get(axis.name, REPLICATE) for axis in sharding.strategy.mesh.axes)


def _mesh(plan: Plan, call: int) -> int:
    """The number of the mesh that a call runs on."""
    return plan.strategies.index(plan.strategy_of(plan.layers_of(call)))


def _sharding(plan: Plan, call: int) -> Sharding:
    return plan.shardings[plan.layers_of(call).sharding]


def _state_tensors(
    plan: Plan, model: Model, dataflow: Dataflow, runs: tuple[CallRun, ...]
) -> tuple[ParameterSpec, ...]:
    graph = dataflow.graph
    lies: dict[str, tuple[int, Layout]] = {}
    factors: dict[str, Factors] = {}
    stages: dict[str, set[int]] = {}
    writers: dict[str, int] = {}
    partial_axes: dict[str, tuple[str, ...]] = {}
    sparse = sparse_gradients(model)
    for number, call in enumerate(model.calls):
        sharding = _sharding(plan, number)
        once = number in graph.batch_only
        where = range(len(plan.stages)) if once else plan.stages_of(number)
        for position, (name, item) in enumerate(graph.parameters(number)):
            here = _mesh(plan, number), _on_devices(sharding.boundary.inputs[position], sharding)
            if item.kind == "parameter" and lies.setdefault(name, here) != here:
                raise MismatchError(f"{name} is shared by layers that hold it differently")
            lies.setdefault(name, here)
            gradient = sharding.boundary.gradients[position]
            if gradient is not None:  # a call may read a parameter that others train
                compressed = plan.optimizer.name in COMPRESSED_OPTIMIZERS
                reduced = _partial_axes(gradient, sharding.mesh, compressed)
                partial_axes.setdefault(name, reduced)
            factors.setdefault(name, dataflow.axes[call.function].factors[item.value])
            stages.setdefault(name, set()).update(where)
        for _, buffer in call.updates:
            stages.setdefault(buffer, set()).update(where)
            writers[buffer] = where[0]
    sparse = frozenset(p.name for p in model.parameters if p.trainable and p.name in sparse)
    for name in sorted(sparse):
        _check_rows(name, plan, stages.get(name, {0}))
    replicated: Layout = tuple(REPLICATE for _ in plan.strategies[0].mesh.axes)
    unsharded: tuple[int, Layout] = 0, replicated
    single = {
        p.name: ParameterSpec(
            name=p.name,
            kind=p.kind,
            type=p.type,
            factors=factors.get(p.name, tuple((size,) for size in p.type.shape)),
            layout=lies.get(p.name, unsharded)[1],
            stages=_first(writers.get(p.name), stages.get(p.name, {0})),
            trainable=p.trainable,
            mesh=lies.get(p.name, unsharded)[0],
            partial_axes=partial_axes.get(p.name, ()) if p.trainable else (),
            aliases=p.aliases,
            values=p.values,
            reached=p.kind != "parameter" or not p.trainable or p.name in graph.reached,
            sparse_gradient=p.name in sparse,
            fraction=(
                plan.strategies[lies.get(p.name, unsharded)[0]].fraction
                if p.kind == "parameter"
                else FULL
            ),
        )
        for p in model.parameters
    }
    return _fold_layers(single, runs)


def _check_rows(name: str, plan: Plan, stages: set[int]) -> None:
    """Raise MismatchError where gradients of the rows of a table cannot be summed as such."""
    problem = ""
    if plan.optimizer.name in COMPRESSED_OPTIMIZERS:
        problem = f"{plan.optimizer.name} sums gradients of all rows: take another optimizer"
    elif len(stages) > 1:
        problem = f"stages {sorted(stages)} have it: plan without pp"
    if problem:
        raise MismatchError(
            f"the gradient of {name} is of the rows that a step reads (sparse=True), and {problem}, or "
            f"make its embedding without sparse=True"
        )


def _first(writer: int | None, stages: set[int]) -> tuple[int, ...]:
    """Stages in order, but the one that writes a buffer first: the others are given its value."""
    return tuple(sorted(stages, key=lambda stage: (stage != writer, stage)))


def _partial_axes(gradient: Layout, mesh: Mesh, optimizer_reduces: bool) -> tuple[str, ...]:
    """Device axes over which a gradient is partial and must be all-reduced: no ZeRO role shards it,
    and no compressed optimizer reduces it."""
    excluded = (MICRO, COMPRESSED_OPTIMIZER_ROLE) if optimizer_reduces else (MICRO,)
    return tuple(
        axis.name
        for axis, state in zip(mesh.axes, gradient, strict=False)
        if state == PARTIAL
        and axis.size > 1
        and axis.name not in excluded
        and not ROLES[axis.name].shards
    )


def _fold_layers(
    single: dict[str, ParameterSpec], runs: tuple[CallRun, ...]
) -> tuple[ParameterSpec, ...]:
    """State tensors of equal layers folded into one spec, in the order of their first."""
    folded: dict[str, ParameterSpec] = {}
    covered: set[str] = set()
    for run in runs:
        for pattern in run.state_tensors:
            if not isinstance(pattern, NumberedName):
                continue
            names = [pattern.at(i) for i in range(run.last - run.first)]
            variants = {replace(single[n], name="") for n in names}
            if len(variants) == 1 and covered.isdisjoint(names):
                covered.update(names)
                folded[names[0]] = replace(single[names[0]], name=pattern, count=len(names))
    specs = (folded.get(n, spec) for n, spec in single.items() if n in folded or n not in covered)
    return tuple(specs)


def _run(layers: Layers, plan: Plan, model: Model) -> CallRun:
    calls = model.calls[layers.first : layers.last]
    state_names = zip(*(c.parameters for c in calls), strict=True)
    updates = []
    for names in zip(*(c.updates for c in calls), strict=True):
        position = calls[0].results.index(names[0][0])
        updates.append((position, numbered([buffer for _, buffer in names])))
    return CallRun(
        first=layers.first,
        last=layers.last,
        path=numbered([c.path for c in calls]),
        state_tensors=tuple(numbered(list(names)) for names in state_names),
        updates=tuple(updates),
        mesh=_mesh(plan, layers.first),
    )


def numbered(names: list[str]) -> Names:
    """Names that count up in one place, as a pattern; equal names as one; else all of them."""
    if len(set(names)) == 1:
        return names[0]
    for match in re.finditer(r"\d+", names[0]):
        pattern = NumberedName(names[0][: match.start()], int(match[0]), names[0][match.end() :])
        if [pattern.at(i) for i in range(len(names))] == names:
            return pattern
    return tuple(names)


def _batch(model: Model, layouts: PlanLayouts) -> tuple[BatchTensor, ...]:
    tensors = []
    for item in model.inputs:
        layout = layouts.producer_layout(item.name)
        assert layout.layout[0] == "R" or isinstance(layout.layout[0], tuple)
        tensors.append(BatchTensor(item.name, item.path, item.type, layout.factors, layout.layout))
    return tuple(tensors)


def _output(name: str, plan: Plan, layouts: PlanLayouts) -> ProgramOutput:
    """A tensor that the model's caller gets, where it is produced."""
    graph, layout = layouts.graph, layouts.producer_layout(name)
    maker = graph.maker(name)
    if maker is None:
        path = next(item.path for item in graph.model.inputs if item.name == name)
        return ProgramOutput(layout.type, layout.factors, layout.layout, path=path)
    everywhere = maker.call in graph.batch_only
    stages = range(len(plan.stages)) if everywhere else plan.stages_of(maker.call)
    return ProgramOutput(
        layout.type, layout.factors, layout.layout, maker.call, maker.position, tuple(stages)
    )
