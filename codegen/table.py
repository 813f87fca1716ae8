"""The table of a program: names, sizes and layouts, everything that is not code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec.structs import replace

from ..ir.analysis.dataflow import Flow, flow
from ..ir.compression.registry import LEADERS, LED
from ..ir.errors import MismatchError
from ..ir.files import digest
from ..ir.layout import PARTIAL, REPLICATE, Factors, Layout
from ..ir.lowering.localize import MICRO
from ..ir.lowering.reshard import Between
from ..ir.mesh import Mesh
from ..ir.model import Model
from ..ir.plan.flat_shard import WHOLE
from ..ir.plan.plan import Layers, Plan, Sharding
from ..ir.plan.strategy import ROLES
from ..ir.program import BatchTensor, CallRun, CompressedAxis, Held, Names, Numbered, Table


def plan_table(plan: Plan, model: Model) -> Table:
    """The table of a plan's program, without the program."""
    found = flow(model)
    return table(plan, model, found, Between(plan, model, found), "")


def table(plan: Plan, model: Model, found: Flow, between: Between, source: str) -> Table:
    """Everything a program of this plan needs to know."""
    runs = tuple(_run(layers, plan, model) for layers in plan.layers)
    return Table(
        model=model.name,
        model_digest=model.fingerprint(),
        plan_digest=digest(plan),
        mesh=plan.mesh,
        meshes=tuple(strategy.mesh for strategy in plan.strategies),
        loss=_mesh(plan, next(i for i, c in enumerate(model.calls) if model.loss in c.results)),
        stages=len(plan.stages),
        chunks=plan.chunks,
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        global_batch=plan.global_batch,
        precision=plan.precision,
        optimizer=plan.optimizer.name,
        held=_held(plan, model, found, runs),
        calls=runs,
        batch=_batch(model, between),
        crossing=tuple(between.crossing(piece) for piece in range(len(plan.pieces) - 1)),
        source=source,
        compression=tuple(_compressed(plan)),
    )


def _compressed(plan: Plan) -> Iterator[CompressedAxis]:
    """What travels compressed, by mesh and role."""
    if plan.optimizer.name in LEADERS:
        first = plan.strategies[0]
        near = plan.cluster.near(first.size(LED), first.stride(LED)) if first.size(LED) > 1 else 1
        yield CompressedAxis(0, LED, near, optimizer=plan.optimizer.name)
    for number, strategy in enumerate(plan.strategies):
        own = [c for c in plan.compression if c.strategy == strategy]
        for role in dict.fromkeys(c.role for c in own):
            programs = {c.subject: c.program for c in own if c.role == role}
            inner = plan.cluster.near(strategy.size(role), strategy.stride(role))
            yield CompressedAxis(number, role, inner, **programs)


def _on_devices(layout: Layout, sharding: Sharding) -> Layout:
    """A function's layout on its strategy's devices: whole over stages, micro-batches left out."""
    states = {axis.name: s for axis, s in zip(sharding.mesh.axes, layout, strict=True)}
    return tuple(states.get(axis.name, REPLICATE) for axis in sharding.strategy.mesh.axes)


def _mesh(plan: Plan, call: int) -> int:
    """The number of the mesh that a call runs on."""
    return plan.strategies.index(plan.strategy_of(plan.layers_of(call)))


def _sharding(plan: Plan, call: int) -> Sharding:
    return plan.shardings[plan.layers_of(call).sharding]


def _held(plan: Plan, model: Model, found: Flow, runs: tuple[CallRun, ...]) -> tuple[Held, ...]:
    functions = {f.name: f for f in model.functions}
    once = model.once()
    lies: dict[str, tuple[int, Layout]] = {}
    factors: dict[str, Factors] = {}
    stages: dict[str, set[int]] = {}
    sums: dict[str, tuple[str, ...]] = {}
    for number, call in enumerate(model.calls):
        function, sharding = functions[call.function], _sharding(plan, number)
        where = range(len(plan.stages)) if number in once else (plan.stage_of(number),)
        for position, (item, name) in enumerate(zip(function.held(), call.parameters, strict=True)):
            here = _mesh(plan, number), _on_devices(sharding.boundary.inputs[position], sharding)
            if item.kind == "parameter" and lies.setdefault(name, here) != here:
                raise MismatchError(f"{name} is shared by layers that hold it differently")
            lies.setdefault(name, here)
            gradient = sharding.boundary.gradients[position]
            sums.setdefault(name, _sums(gradient, sharding.mesh, plan.optimizer.name in LEADERS))
            factors.setdefault(name, found.axes[function.name].factors[item.value])
            stages.setdefault(name, set()).update(where)
    whole = 0, (REPLICATE,) * len(plan.strategies[0].mesh.axes)
    single = {
        p.name: Held(
            name=p.name,
            kind=p.kind,
            type=p.type,
            factors=factors.get(p.name, tuple((size,) for size in p.type.shape)),
            layout=lies.get(p.name, whole)[1],
            stages=tuple(sorted(stages.get(p.name, {0}))),
            trainable=p.trainable,
            mesh=lies.get(p.name, whole)[0],
            sums=sums.get(p.name, ()) if p.trainable else (),
            aliases=p.aliases,
            values=p.values,
            fraction=(
                plan.strategies[lies.get(p.name, whole)[0]].fraction
                if p.kind == "parameter"
                else WHOLE
            ),
        )
        for p in model.parameters
    }
    return _fold(single, runs)


def _sums(gradient: Layout | None, mesh: Mesh, led: bool) -> tuple[str, ...]:
    """Axes of devices over which a gradient is partial, no role keeps it in pieces, and its sum is not
    left to an optimizer that is `led`."""
    left = (MICRO, LED) if led else (MICRO,)
    return tuple(
        axis.name
        for axis, state in zip(mesh.axes, gradient or (), strict=False)
        if state == PARTIAL
        and axis.size > 1
        and axis.name not in left
        and not ROLES[axis.name].shards
    )


def _fold(single: dict[str, Held], runs: tuple[CallRun, ...]) -> tuple[Held, ...]:
    """Tensors of equal layers as one entry, in the order of their first."""
    folded: dict[str, Held] = {}
    covered: set[str] = set()
    for run in runs:
        for pattern in run.held:
            if not isinstance(pattern, Numbered):
                continue
            names = [pattern.at(i) for i in range(run.last - run.first)]
            alike = {replace(single[n], name="") for n in names}
            if len(alike) == 1 and covered.isdisjoint(names):
                covered.update(names)
                folded[names[0]] = replace(single[names[0]], name=pattern, count=len(names))
    kept = (folded.get(n, held) for n, held in single.items() if n in folded or n not in covered)
    return tuple(kept)


def _run(layers: Layers, plan: Plan, model: Model) -> CallRun:
    calls = model.calls[layers.first : layers.last]
    held = zip(*(c.parameters for c in calls), strict=True)
    updates = []
    for names in zip(*(c.updates for c in calls), strict=True):
        position = calls[0].results.index(names[0][0])
        updates.append((position, numbered([buffer for _, buffer in names])))
    return CallRun(
        first=layers.first,
        last=layers.last,
        path=numbered([c.path for c in calls]),
        held=tuple(numbered(list(names)) for names in held),
        updates=tuple(updates),
        mesh=_mesh(plan, layers.first),
    )


def numbered(names: list[str]) -> Names:
    """Names that count up in one place, as a pattern; equal names as one; else all of them."""
    if len(set(names)) == 1:
        return names[0]
    for match in re.finditer(r"\d+", names[0]):
        made = Numbered(names[0][: match.start()], int(match[0]), names[0][match.end() :])
        if [made.at(i) for i in range(len(names))] == names:
            return made
    return tuple(names)


def _batch(model: Model, between: Between) -> tuple[BatchTensor, ...]:
    tensors = []
    for item in model.inputs:
        lying = between.lying(item.name)
        assert lying.layout[0] == "R" or isinstance(lying.layout[0], tuple)
        tensors.append(BatchTensor(item.name, item.path, item.type, lying.factors, lying.layout))
    return tuple(tensors)
