"""Structural checks of a program's table that may come from a file."""

from __future__ import annotations

import re
from math import prod

from ...compression.registry import COMPRESSED_OPTIMIZERS, PROGRAMS, ROW_PROGRAMS
from ...errors import UsageError
from ...model.layout import Factors, Layout, divides_evenly
from ...model.mesh import MICRO, Axis, Mesh
from ...model.tensor import TensorType
from ...model.verify import require, verify_type
from ..flat_shard import FULL
from ..program import (
    PLACED_SCHEDULE,
    BatchTensor,
    CallRun,
    CompressedAxis,
    Names,
    NumberedName,
    ParameterSpec,
    ProgramTable,
    sealed,
)
from ..schedules.registry import check_schedule, chunk_map
from ..strategy import ROLES
from .plan import MOST_DEVICES, MOST_STEPS

MOST_NAMES = 1 << 20  # tensors and calls, which are listed one by one


def verify_program(table: ProgramTable) -> None:
    """Raises FileError naming the JSON path of the first thing that does not hold together."""
    _verify_meshes(table)
    _verify_schedule(table)
    names = _verify_state(table)
    _verify_calls(table, names)
    grid = Mesh((Axis(MICRO, table.micro_batches), *table.mesh.axes))
    for i, tensor in enumerate(table.batch):
        _verify_batch(tensor, grid, f"$.batch[{i}]")
    for i, axis in enumerate(table.compression):
        _verify_axis(axis, table, f"$.compression[{i}]")
    _verify_groups(table)
    whole = table.table_digest == sealed(table).table_digest
    require(
        whole, "$.table_digest", "the table was changed, or not written whole: compile it again"
    )


def _verify_groups(table: ProgramTable) -> None:
    """Groups follow each other in ranks, and each has a sound table of the same model."""
    at = 0
    for i, group in enumerate(table.groups):
        where, inner = f"$.groups[{i}]", group.table
        require(group.first_rank == at, f"{where}.first_rank", "ranks must follow on")
        at += inner.mesh.size
        require(not inner.groups, f"{where}.table.groups", "groups inside a group")
        require(
            re.fullmatch(r"group_\d{1,9}", group.folder) is not None, f"{where}.folder", "no name"
        )
        require(group.stage < inner.stages <= 3, f"{where}.stage", "no such")
        known = 0 <= group.calls[0] < group.calls[1]
        require(known, f"{where}.calls", "no calls")
        inside = all(m < inner.micro_batches for m in group.micro_batches)
        require(inside and group.micro_batches != (), f"{where}.micro_batches", "not of a step")
        same = (inner.model_digest, inner.micro_batches, inner.global_batch)
        whole = (table.model_digest, table.micro_batches, table.global_batch)
        require(same == whole, f"{where}.table", "of another model or batch")
        _verify_meshes(inner)
        _verify_calls(inner, _verify_state(inner))
        grid = Mesh((Axis(MICRO, inner.micro_batches), *inner.mesh.axes))
        for n, tensor in enumerate(inner.batch):
            _verify_batch(tensor, grid, f"{where}.table.batch[{n}]")
        for name, values in (("received", group.received), ("sent", group.sent)):
            for n, value in enumerate(values):
                place = f"{where}.{name}[{n}]"
                verify_type(value.type, f"{place}.type")
                for layout in (value.layout, value.gradient_layout or value.layout):
                    _verify_layout(value.type, value.factors, layout, inner.mesh, place)
    require(not table.groups or at == table.mesh.size, "$.mesh", "not the ranks of the groups")


def _verify_meshes(table: ProgramTable) -> None:
    require(table.mesh.size <= MOST_DEVICES, "$.mesh", f"more than {MOST_DEVICES} ranks")
    require(len(table.meshes) > 0, "$.meshes", "at least one")
    for i, mesh in enumerate((table.mesh, *table.meshes)):
        where = f"$.meshes[{i - 1}]" if i else "$.mesh"
        names = [axis.name for axis in mesh.axes]
        require(len(set(names)) == len(names), where, "two axes share a name")
        require(mesh.size == table.mesh.size, where, "other ranks than the mesh's")
        known = i == 0 or table.schedule == PLACED_SCHEDULE or all(name in ROLES for name in names)
        require(known, where, f"not axes of a strategy: {', '.join(names):.80}")
    require(table.loss_mesh < len(table.meshes), "$.loss_mesh", "no such")


def _verify_schedule(table: ProgramTable) -> None:
    require(
        table.global_batch % table.micro_batches == 0, "$.micro_batches", "must divide the batch"
    )
    if table.schedule == PLACED_SCHEDULE:
        return
    chunks = chunk_map(table.schedule, table.stages, table.chunks_per_stage).total
    require(table.mesh.size % table.stages == 0, "$.stages", "must divide the ranks")
    staged = prod(a.size for a in table.meshes[0].axes if ROLES[a.name].stages)
    require(staged == table.stages, "$.stages", f"the mesh has {staged}")
    steps = table.stages * table.chunks_per_stage * table.micro_batches
    require(steps <= MOST_STEPS, "$.micro_batches", f"a schedule of {steps} forwards is too long")
    have = len(table.stage_transfers)
    require(have == chunks - 1, "$.stage_transfers", f"{have} between {chunks} model chunks")
    for i, values in enumerate(table.stage_transfers):
        for v, value in enumerate(values):
            verify_type(value.type, f"$.stage_transfers[{i}][{v}].type")
    try:
        check_schedule(table.schedule, table.stages, table.micro_batches, table.chunks_per_stage)
    except UsageError as error:
        require(False, "$.schedule", str(error))


def _verify_state(table: ProgramTable) -> frozenset[str]:
    """Every tensor once; the names of all."""
    total = sum(spec.count for spec in table.state_tensors)
    require(total <= MOST_NAMES, "$.state_tensors", f"more than {MOST_NAMES} tensors")
    for i, spec in enumerate(table.state_tensors):
        _verify_spec(spec, table, f"$.state_tensors[{i}]")
    names = [name for spec in table.state_tensors for name in (*spec.names(), *spec.aliases)]
    require(len(set(names)) == len(names), "$.state_tensors", "two tensors share a name")
    return frozenset(name for spec in table.state_tensors for name in spec.names())


def _verify_spec(spec: ParameterSpec, table: ProgramTable, where: str) -> None:
    require(spec.mesh < len(table.meshes), f"{where}.mesh", "no such")
    mesh = table.meshes[spec.mesh]
    verify_type(spec.type, f"{where}.type")
    _verify_layout(spec.type, spec.factors, spec.layout, mesh, where)
    numbered = isinstance(spec.name, NumberedName)
    require(numbered or spec.count == 1, f"{where}.count", "several tensors of one name")
    stages = table.mesh.size if table.schedule == PLACED_SCHEDULE else table.stages
    # a buffer's first stage is the one that writes it
    ordered = list(spec.stages[spec.kind == "buffer" :])
    require(
        ordered == sorted(set(ordered))
        and len({*spec.stages}) == len(spec.stages)
        and 0 <= max(spec.stages, default=-1) < stages,
        f"{where}.stages",
        "not stages of the program",
    )
    names = {axis.name for axis in mesh.axes}
    known = names.issuperset(spec.partial_axes) and len(set(spec.partial_axes)) == len(
        spec.partial_axes
    )
    require(known, f"{where}.partial_axes", "not axes of its mesh")
    over, under = spec.fraction
    require(spec.fraction == FULL or over < under, f"{where}.fraction", "not between 0 and 1")
    values = spec.values
    fits = values is None or len(values) == spec.type.elements
    require(fits, f"{where}.values", f"not the {spec.type.elements} elements of the tensor")


def _verify_layout(
    type_: TensorType, factors: Factors, layout: Layout, mesh: Mesh, where: str
) -> None:
    """A placement per mesh axis, of factors that make up the shape and divide."""
    whole = tuple(prod(dim) for dim in factors) == type_.shape
    require(whole, f"{where}.factors", f"do not make up {type_}")
    require(len(layout) == len(mesh.axes), f"{where}.layout", "not one placement per mesh axis")
    for state in layout:
        if isinstance(state, tuple):
            there = state[0] < len(factors) and state[1] < len(factors[state[0]])
            require(there, f"{where}.layout", f"no factor {state[0]}.{state[1]}")
    require(divides_evenly(factors, layout, mesh), f"{where}.layout", "does not divide the tensor")


def _verify_calls(table: ProgramTable, names: frozenset[str]) -> None:
    """Runs of calls follow on, and their state tensors exist."""
    at = 0
    for i, run in enumerate(table.calls):
        where = f"$.calls[{i}]"
        require(run.first == at and run.last > at, where, "calls must follow on")
        require(run.last <= MOST_NAMES, where, f"more than {MOST_NAMES} calls")
        require(run.mesh < len(table.meshes), f"{where}.mesh", "no such")
        at = run.last
        _verify_names(run, run.path, f"{where}.path", None)
        for n, name in enumerate(run.state_tensors):
            _verify_names(run, name, f"{where}.state_tensors[{n}]", names)
        for n, (_, name) in enumerate(run.updates):
            _verify_names(run, name, f"{where}.updates[{n}]", names)


def _verify_names(run: CallRun, names: Names, where: str, known: frozenset[str] | None) -> None:
    if isinstance(names, tuple):
        have, want = len(names), run.last - run.first
        require(have == want, where, f"{have} names for {want} calls")
    if known is not None:
        for call in range(run.first, run.last):
            name = run.name(names, call)
            require(name in known, where, f"no tensor {name!r:.80}")


def _verify_batch(tensor: BatchTensor, grid: Mesh, where: str) -> None:
    verify_type(tensor.type, f"{where}.type")
    _verify_layout(tensor.type, tensor.factors, tensor.layout, grid, where)


def _verify_axis(axis: CompressedAxis, table: ProgramTable, where: str) -> None:
    """Programs and the optimizer exist, and the role is an axis of the mesh."""
    require(axis.mesh < len(table.meshes), f"{where}.mesh", "no such")
    sizes = [a.size for a in table.meshes[axis.mesh].axes if a.name == axis.role]
    require(len(sizes) == 1, f"{where}.role", f"no axis {axis.role!r:.80}")
    require(sizes[0] % axis.inner == 0, f"{where}.inner", f"does not divide {sizes[0]}")
    for field in ("gradients", "weights", "activations"):
        name = getattr(axis, field)
        require(not name or name in PROGRAMS, f"{where}.{field}", f"no program {name!r:.80}")
    known = not axis.rows or (axis.rows in ROW_PROGRAMS and ROLES[axis.role].experts)
    require(known, f"{where}.rows", f"no program {axis.rows!r:.80} of rows to experts")
    known = not axis.optimizer or axis.optimizer in COMPRESSED_OPTIMIZERS
    require(known, f"{where}.optimizer", f"no compressed optimizer {axis.optimizer!r:.80}")
