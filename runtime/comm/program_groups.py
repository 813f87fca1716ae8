"""Process groups of a program: along every axis of its meshes, and along the pipeline."""

from __future__ import annotations

from ...ir.model.mesh import Mesh
from ...ir.plan.program import CompressedAxis, ProgramTable
from ...ir.plan.strategy import ROLES
from .group_hierarchy import GroupHierarchy, group_hierarchy
from .process_group import Group, GroupPool, Partition


class MeshGroups:
    """Groups that this rank is in; every rank creates them in the same order.

    axes         by axis of the grid
    roles        per mesh, by role; a role without an axis has this rank alone
    partial      by mesh and the axes over which gradients are partial sums
    hierarchies  by mesh and role, of compressed collectives
    down, up     along the stages, forward and backward: two groups, because NCCL runs the transfers
                 of one pair in order
    tied         by the stages that share trainable tensors
    everyone     all ranks
    """

    def __init__(self, table: ProgramTable, pool: GroupPool) -> None:
        self.rank, self.sent_bytes, self.pool = pool.rank, pool.sent_bytes, pool
        self.everyone = pool.everyone()
        self.axes = along_axes(table.mesh, pool)
        self.roles = tuple(by_role(mesh, pool) for mesh in table.meshes)
        self.partial: dict[tuple[int, tuple[str, ...]], Group] = {}
        for number, axes in sorted(
            {(h.mesh, h.partial_axes) for h in table.state_tensors if h.partial_axes}
        ):
            mesh = table.meshes[number]
            members = tuple(mesh.index(name) for name in axes)
            self.partial[number, axes] = pool.group("+".join(axes), mesh.groups(members))
        self.hierarchies = {
            (axis.mesh, axis.role): hierarchy_along(table.meshes[axis.mesh], axis, pool)
            for axis in table.compression
            if not ROLES[axis.role].stages
        }
        mesh = table.meshes[0]
        replicas = mesh.groups(tuple(i for i, a in enumerate(mesh.axes) if ROLES[a.name].stages))
        self.down = pool.group("stages, forward", replicas, channel=1)
        self.up = pool.group("stages, backward", replicas, channel=2)
        self.stage = self.down.index
        self.tied = {
            stages: pool.group("shared tensors", _shared(replicas, stages))
            for stages in sorted({h.stages for h in table.state_tensors if h.trainable})
            if len(stages) > 1
        }


def hierarchy_along(mesh: Mesh, axis: CompressedAxis, pool: GroupPool) -> GroupHierarchy:
    """Groups along an axis: of all ranks, inside the node, and of the peers in other nodes."""
    along = tuple(i for i, one in enumerate(mesh.axes) if one.name == axis.role)
    return group_hierarchy(pool, axis.role, mesh.groups(along), axis.inner)


def along_axes(mesh: Mesh, pool: GroupPool) -> dict[str, Group]:
    """A group along every axis of a mesh."""
    return {
        axis.name: pool.group(axis.name, mesh.groups((number,)))
        for number, axis in enumerate(mesh.axes)
    }


def by_role(mesh: Mesh, pool: GroupPool) -> dict[str, Group]:
    """A group for every role, along the mesh's axis of that name, else of this rank alone."""
    mine = along_axes(mesh, pool)
    alone = pool.group("this rank", mesh.groups(()))
    return {role: mine.get(role, alone) for role in ROLES}


def _shared(replicas: Partition, stages: tuple[int, ...]) -> Partition:
    """Per pipeline replica the ranks of these stages, then the others."""
    inside = [tuple(replica[s] for s in stages) for replica in replicas]
    others = [
        tuple(rank for s, rank in enumerate(replica) if s not in stages) for replica in replicas
    ]
    return tuple(part for part in (*inside, *others) if part)
