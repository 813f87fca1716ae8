"""The process groups of a program: one per mesh axis, per role, and along the pipeline."""

from __future__ import annotations

from ..ir.program import Table
from ..ir.strategy import ROLES
from .group import Group, Partition, Pool


class MeshGroups:
    """Groups that this rank is in; every rank makes them in the same order.

    `axes` by mesh axis, `roles` by batch role (all axes of the role together), `sums` by the axes
    over which gradients are left to be added up, `down` and `up`
    along the stages (two, because NCCL runs what one pair exchanges in order), `tied` by the stages
    that share trained tensors.
    """

    def __init__(self, table: Table, pool: Pool) -> None:
        self.rank, self.sent, self.pool = pool.rank, pool.sent, pool
        mesh = table.mesh
        self.axes = {
            axis.name: pool.group(axis.name, mesh.groups((number,)))
            for number, axis in enumerate(mesh.axes)
        }
        self.roles: dict[str, Group] = {}
        for role in (r for r in ROLES.values() if r.batch):
            members = tuple(i for i, name in enumerate(table.roles) if name == role.name)
            self.roles[role.name] = pool.group(role.name, mesh.groups(members))
        self.sums: dict[tuple[str, ...], Group] = {}
        for axes in sorted({h.sums for h in table.held if h.sums}):
            members = tuple(mesh.index(name) for name in axes)
            self.sums[axes] = pool.group("+".join(axes), mesh.groups(members))
        lines = mesh.groups(tuple(i for i, r in enumerate(table.roles) if ROLES[r].stages))
        self.down = pool.group("stages, forward", lines, channel=1)
        self.up = pool.group("stages, backward", lines, channel=2)
        self.stage = self.down.index
        self.tied = {
            stages: pool.group("shared tensors", _shared(lines, stages))
            for stages in sorted({h.stages for h in table.held if h.trainable})
            if len(stages) > 1
        }


def _shared(lines: Partition, stages: tuple[int, ...]) -> Partition:
    """Per pipeline line the ranks of these stages, and the others."""
    inside = [tuple(line[s] for s in stages) for line in lines]
    others = [
        tuple(rank for s, rank in enumerate(line) if s not in stages) for line in lines
    ]
    return tuple(part for part in (*inside, *others) if part)
