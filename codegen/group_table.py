"""Tables of a program whose ranks run device groups."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from ..ir.analysis.dataflow import Dataflow
from ..ir.analysis.row_gradients import sparse_gradients
from ..ir.compression.registry import COMPRESSED_OPTIMIZERS
from ..ir.errors import UsageError
from ..ir.files.json_files import digest
from ..ir.lowering.plan_layouts import PlanLayouts
from ..ir.model.layout import REPLICATE, Layout, local_factors, local_type
from ..ir.model.model import Model
from ..ir.plan.flat_shard import FULL
from ..ir.plan.groups.view import GroupView
from ..ir.plan.plan import Plan
from ..ir.plan.program import (
    BatchTensor,
    GroupProgram,
    GroupValue,
    ParameterSpec,
    ProgramTable,
    StageValue,
)
from .table import program_table


def refuse_unrunnable(plan: Plan, model: Model) -> None:
    """Raise UsageError for what programs of device groups cannot keep."""
    instead = "plan for devices of one kind (a cluster without parts)"
    for call in model.calls:
        if call.updates:
            raise UsageError(
                f"{call.path or call.function} replaces its buffer {call.updates[0][1]} in every step, "
                f"from samples that device groups share unequally: {instead}"
            )
    optimizer = plan.optimizer
    if optimizer.demand != "elementwise" or optimizer.name in COMPRESSED_OPTIMIZERS:
        raise UsageError(
            f"{optimizer.name} must see whole tensors or send them itself, which device groups "
            f"cannot give it: {instead}, or take an elementwise optimizer"
        )
    for name in sorted(sparse_gradients(model)):
        raise UsageError(
            f"the gradient of {name} is of the rows that a step reads (sparse=True), which device "
            f"groups do not sum: {instead}, or make its embedding without sparse=True"
        )
    if any(strategy.fraction != FULL for strategy in plan.strategies):
        raise UsageError("device groups shard whole weights over zero3, not a fraction of them")


class GroupPlace(NamedTuple):
    """Where a group's program lies, and what its ranks run."""

    folder: str
    first_rank: int
    micro_batches: tuple[int, ...]


def group_program(
    view: GroupView, place: GroupPlace, model: Model, dataflow: Dataflow, source: str
) -> GroupProgram:
    """The program of one device group, seen as a stage of an ordinary plan."""
    layouts, number = PlanLayouts(view.plan, dataflow), view.stage
    chunks = len(view.plan.stages)
    received = layouts.stage_transfers(number - 1) if number else ()
    sent = layouts.stage_transfers(number) if number + 1 < chunks else ()
    return GroupProgram(
        place.folder,
        number,
        place.first_rank,
        view.plan.stages[number].model_chunks[0],
        place.micro_batches,
        tuple(_value(layouts, value) for value in received),
        tuple(_value(layouts, value) for value in sent),
        program_table(view.plan, model, dataflow, layouts, source),
    )


def _value(layouts: PlanLayouts, value: StageValue) -> GroupValue:
    """A value at the border of a group, as its ranks hold it in one micro-batch."""
    whole = layouts.producer_layout(value.name)
    maker = layouts.graph.maker(value.name)
    assert maker is not None, f"{value.name} comes from the batch"
    micro: Layout = (whole.layout[0], *(REPLICATE for _ in whole.layout[1:]))
    return GroupValue(
        value.name,
        local_type(whole.type, whole.factors, micro, layouts.mesh),
        local_factors(whole.factors, micro, layouts.mesh),
        whole.layout[1:],
        layouts.tangent_layout(maker).layout[1:] if value.gradient else None,
    )


def whole_table(
    plan: Plan, model: Model, groups: tuple[GroupProgram, ...], source: str
) -> ProgramTable:
    """The table of all ranks: names, sizes, the batch that every rank takes, and the groups."""
    one = groups[0].table
    return replace(
        one,
        plan_digest=plan.digest,
        cluster_digest=digest(plan.cluster),
        mesh=plan.mesh,
        meshes=(plan.mesh,),
        loss_mesh=0,
        stages=1,
        state_tensors=tuple(map(_replicated, one.state_tensors)),
        calls=(),
        batch=tuple(_whole(tensor) for tensor in one.batch),
        outputs=(),
        stage_transfers=(),
        source=source,
        groups=groups,
    )


def _replicated(spec: ParameterSpec) -> ParameterSpec:
    return replace(spec, layout=(REPLICATE,), stages=(0,), partial_axes=(), mesh=0, fraction=FULL)


def _whole(tensor: BatchTensor) -> BatchTensor:
    return replace(tensor, layout=(REPLICATE, REPLICATE))
