"""Outputs of a forward on every rank: gathered from shards and sent to the other stages."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.model.layout import PARTIAL, AxisPlacement, Layout, local_type, shard_position
from ...ir.model.mesh import Mesh
from ...ir.plan.program import ProgramOutput, ProgramTable
from ...ir.plan.strategy import ROLES
from ..comm.mesh_collectives import Comm
from ..comm.program_groups import MeshGroups
from ..comm.slicing import local_shard
from .batch import Batch, find, micro_batch_mesh
from .calls import Run


def gather_outputs(run: Run, groups: MeshGroups, batch: Batch, *, whole: bool) -> list[Tensor]:
    """The outputs of the forward that ran last, in the order of the table; all ranks together.

    `whole`: of the global batch, else of the samples that this rank's replica works on. The table
    must have one micro-batch.
    """
    assert run.table.micro_batches == 1, "outputs of several micro-batches"
    results = []
    for output in run.table.outputs:
        if output.call is None:
            value = find(batch, output.path)
            results.append(value if whole else _own_samples(value, output, run.table, groups.rank))
            continue
        results.append(_result(run, groups, output, whole=whole))
    run.outputs.clear()
    return results


def _result(run: Run, groups: MeshGroups, output: ProgramOutput, *, whole: bool) -> Tensor:
    """A call's result, from the first stage that has it."""
    assert output.call is not None
    left = _left_layout(output.layout, run.table.mesh, whole=whole)
    if groups.stage in output.stages:
        value = gather_layout(run.outputs[output.call, output.position], output, left, run)
    else:
        type_ = local_type(output.type, output.factors, left, micro_batch_mesh(run.table))
        dtype = getattr(torch, type_.dtype)
        value = torch.empty(type_.shape, dtype=dtype, device=run.store.device)
    everywhere = len(output.stages) == groups.down.size
    first = min(output.stages)
    return value if everywhere else groups.down.broadcast(value.contiguous(), first)


def _left_layout(layout: Layout, mesh: Mesh, *, whole: bool) -> Layout:
    """The layout after gathering: sharded over axes that split the batch, unless `whole`."""
    names = [axis.name for axis in mesh.axes]
    return (
        "R",
        *(
            state if isinstance(state, tuple) and not whole and ROLES[name].batch else "R"
            for name, state in zip(names, layout[1:], strict=True)
        ),
    )


def gather_layout(local: Tensor, output: ProgramOutput, left: Layout, run: Run) -> Tensor:
    """A local shard gathered and summed, innermost axes first, until its layout is `left`."""
    mesh, comm = micro_batch_mesh(run.table), run.grid
    layout: list[AxisPlacement] = ["R", *output.layout[1:]]
    for axis in reversed(range(1, len(layout))):
        if layout[axis] == left[axis]:
            continue
        local = _gathered(local, axis, tuple(layout), output, (mesh, comm))
        layout[axis] = "R"
    return local


def _gathered(
    local: Tensor, axis: int, layout: Layout, output: ProgramOutput, over: tuple[Mesh, Comm]
) -> Tensor:
    (mesh, comm), state = over, layout[axis]
    name = mesh.axes[axis].name
    if state == PARTIAL:
        return comm.all_reduce(local, name)
    assert isinstance(state, tuple)
    dim, outer = shard_position(output.factors, layout, mesh, state)
    return comm.all_gather(local, name, dim, outer)


def _own_samples(value: Tensor, output: ProgramOutput, table: ProgramTable, rank: int) -> Tensor:
    mesh = micro_batch_mesh(table)
    left = _left_layout(output.layout, table.mesh, whole=False)
    return local_shard(value, output.factors, left, mesh, (0, *table.mesh.coordinate(rank)))
