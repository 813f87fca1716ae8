"""Process groups of a program: along every axis of its meshes, and along the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ...ir.model.mesh import Mesh
from ...ir.plan.program import CompressedAxis, GroupProgram, ProgramTable
from ...ir.plan.schedules.registry import chunk_map
from ...ir.plan.strategy import ROLES
from .group_hierarchy import GroupHierarchy, group_hierarchy
from .process_group import Group, GroupPool, Partition


class DeviceGroups:
    """The device groups of a program; `number` is the one of rank `rank`."""

    def __init__(self, programs: Sequence[GroupProgram], rank: int) -> None:
        self.programs = tuple(programs)
        self.number = next(n for n, one in enumerate(programs) if rank in one.ranks)

    @property
    def program(self) -> GroupProgram:
        """What this rank's group runs."""
        return self.programs[self.number]

    @cached_property
    def holders(self) -> dict[str, tuple[int, ...]]:
        """By tensor the groups that have it, in order."""
        holders: dict[str, list[int]] = {}
        for number, one in enumerate(self.programs):
            for spec in one.table.state_tensors:
                if one.stage in spec.stages:
                    for name in spec.names():
                        holders.setdefault(name, []).append(number)
        return {name: tuple(numbers) for name, numbers in holders.items()}

    def owner(self, name: str) -> int:
        """The first group that has a tensor; the first of all where none has."""
        return self.holders.get(name, (0,))[0]


class MeshGroups:
    """Groups that this rank is in; every rank creates them in the same order.

    axes         by axis of the grid
    roles        per mesh, by role; a role without an axis has this rank alone
    partial      by mesh and the axes over which gradients are partial sums
    hierarchies  by mesh and role, of compressed collectives
    levels       per mesh, by role, where its rows travel level by level
    down, up     along the stages, forward and backward: two groups, because NCCL runs the transfers
                 of one pair in order
    transfers    by kind of step: one group, or where chunks run either way, one for each
    tied         by the stages that share trainable tensors
    everyone     all ranks
    rank         this rank's number on the table's mesh
    devices      which device group this rank is in; None where stages are equal
    """

    devices: DeviceGroups | None = None

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
        self.levels = tuple(
            {
                role: group_hierarchy(pool, role, mesh.groups((mesh.index(role),)), near)
                for role, near in neighbours.items()
            }
            for mesh, neighbours in zip(table.meshes, table.neighbours, strict=False)
        )
        mesh = table.meshes[0]
        replicas = mesh.groups(tuple(i for i, a in enumerate(mesh.axes) if ROLES[a.name].stages))
        self.down = pool.group("stages, forward", replicas, channel=1)
        self.up = pool.group("stages, backward", replicas, channel=2)
        self.stage = self.down.index
        self.transfers = {"F": (self.down,), "B": (self.up,)}
        if chunk_map(table.schedule, table.stages, table.chunks_per_stage).turned(1):
            back = pool.group("stages, forward and back", replicas, channel=3)
            there = pool.group("stages, backward and there", replicas, channel=4)
            self.transfers = {"F": (self.down, back), "B": (self.up, there)}
        self.tied = {
            stages: pool.group("shared tensors", _shared(replicas, stages))
            for stages in sorted(
                {h.stages for h in table.state_tensors if h.trainable and h.reached}
            )
            if len(stages) > 1
        }

    def transfer_group(self, kind: str, chunk: int) -> Group:
        """The group that results of a step of this kind and chunk of a stage travel in."""
        groups = self.transfers["F" if kind == "F" else "B"]
        return groups[chunk % len(groups)]

    def owns(self, name: str, stages: tuple[int, ...]) -> bool:
        """Whether a tensor of these stages is told to the others from here."""
        if self.devices is not None:
            return self.devices.owner(name) == self.devices.number
        return self.stage == stages[0]

    def broadcast_from_owner(self, value: Tensor, name: str, stages: tuple[int, ...]) -> Tensor:
        """The value of a tensor of these stages on the ranks that own it; others give memory for it."""
        if self.devices is not None:
            first = self.devices.programs[self.devices.owner(name)].first_rank
            return self.everyone.broadcast(value, first)
        return self.down.broadcast(value, stages[0])

    @property
    def place(self) -> int:
        """The number of this rank's device group; 0 where stages are equal."""
        return 0 if self.devices is None else self.devices.number


class GroupedMeshGroups(MeshGroups):
    """The groups of a rank of a device group: its mesh is that of its own group."""

    def __init__(self, whole: ProgramTable, pool: GroupPool) -> None:
        self.devices = DeviceGroups(whole.groups, pool.rank)
        mine, tables = self.devices.program, [g.table for g in whole.groups]
        self.rank, self.sent_bytes, self.pool = pool.rank - mine.first_rank, pool.sent_bytes, pool
        self.everyone, self.stage = pool.everyone(), mine.stage
        roles = {role: self._along(role) for role in ROLES}
        self.roles = (roles,)
        self.axes = {axis.name: roles[axis.name] for axis in mine.table.mesh.axes}
        keys = {h.partial_axes for t in tables for h in t.state_tensors if h.partial_axes}
        self.partial = {(0, axes): self._along(*axes) for axes in sorted(keys)}
        self.hierarchies, self.tied, self.levels = {}, {}, ()
        everyone: Partition = (self.everyone.ranks,)
        self.down = pool.group("groups, forward", everyone, channel=1)
        self.up = pool.group("groups, backward", everyone, channel=2)

    def _along(self, *axes: str) -> Group:
        """The group along axes of this rank's mesh; every rank asks for all axes of all meshes."""
        assert self.devices is not None
        parts: list[tuple[int, ...]] = []
        for one in self.devices.programs:
            names = [axis.name for axis in one.table.mesh.axes]
            members = tuple(names.index(axis) for axis in axes if axis in names)
            parts += [
                tuple(one.first_rank + rank for rank in part)
                for part in one.table.mesh.groups(members)
            ]
        return self.pool.group("+".join(axes), tuple(parts))


def groups_of(table: ProgramTable, pool: GroupPool) -> MeshGroups:
    """The groups of this rank."""
    return GroupedMeshGroups(table, pool) if table.groups else MeshGroups(table, pool)


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
