"""The process groups of a program: along every axis of its meshes, and along the pipeline."""

from __future__ import annotations

from ...ir.mesh import Mesh
from ...ir.plan.strategy import ROLES
from ...ir.program import CompressedAxis, Table
from ..compression.levels import levels
from ..compression.work import Levels
from .process_group import Group, Partition, Pool


class MeshGroups:
    """Groups that this rank is in; every rank makes them in the same order.

    `axes` by axis of the grid; per mesh, `roles` by role (an empty one has this rank alone); `sums`
    by mesh and the axes over which gradients are left to be added up; `compressed` by mesh and role
    the levels of what travels compressed; `down` and `up` along the stages (two, because NCCL runs
    what one pair exchanges in order); `tied` by the stages that share trained tensors.
    """

    def __init__(self, table: Table, pool: Pool) -> None:
        self.rank, self.sent, self.pool = pool.rank, pool.sent, pool
        self.axes = along_axes(table.mesh, pool)
        self.roles = tuple(by_role(mesh, pool) for mesh in table.meshes)
        self.sums: dict[tuple[int, tuple[str, ...]], Group] = {}
        for number, axes in sorted({(h.mesh, h.sums) for h in table.held if h.sums}):
            mesh = table.meshes[number]
            members = tuple(mesh.index(name) for name in axes)
            self.sums[number, axes] = pool.group("+".join(axes), mesh.groups(members))
        self.compressed = {
            (axis.mesh, axis.role): compressed_levels(table.meshes[axis.mesh], axis, pool)
            for axis in table.compression
            if not ROLES[axis.role].stages
        }
        mesh = table.meshes[0]
        lines = mesh.groups(tuple(i for i, a in enumerate(mesh.axes) if ROLES[a.name].stages))
        self.down = pool.group("stages, forward", lines, channel=1)
        self.up = pool.group("stages, backward", lines, channel=2)
        self.stage = self.down.index
        self.tied = {
            stages: pool.group("shared tensors", _shared(lines, stages))
            for stages in sorted({h.stages for h in table.held if h.trainable})
            if len(stages) > 1
        }


def compressed_levels(mesh: Mesh, axis: CompressedAxis, pool: Pool) -> Levels:
    """All ranks along an axis, those that share a node, and one's peers in other nodes."""
    along = tuple(i for i, one in enumerate(mesh.axes) if one.name == axis.role)
    return levels(pool, axis.role, mesh.groups(along), axis.inner)


def along_axes(mesh: Mesh, pool: Pool) -> dict[str, Group]:
    """A group along every axis of a mesh."""
    return {
        axis.name: pool.group(axis.name, mesh.groups((number,)))
        for number, axis in enumerate(mesh.axes)
    }


def by_role(mesh: Mesh, pool: Pool) -> dict[str, Group]:
    """A group for every role, along the mesh's axis of that name or of nobody else."""
    mine = along_axes(mesh, pool)
    alone = pool.group("this rank", mesh.groups(()))
    return {role: mine.get(role, alone) for role in ROLES}


def _shared(lines: Partition, stages: tuple[int, ...]) -> Partition:
    """Per pipeline line the ranks of these stages, and the others."""
    inside = [tuple(line[s] for s in stages) for line in lines]
    others = [tuple(rank for s, rank in enumerate(line) if s not in stages) for line in lines]
    return tuple(part for part in (*inside, *others) if part)
