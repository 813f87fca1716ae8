"""The process groups of a program: one per mesh axis, per role, and along the pipeline."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from ..ir.mesh import Mesh
from ..ir.program import Table
from ..ir.strategy import ROLES
from .group import Group, make_group
from .watchdog import TIMEOUT


class MeshGroups:
    """Groups that this rank is in; every rank makes them in the same order.

    `axes` by mesh axis, `roles` by batch role (all axes of the role together), `down` and `up`
    along the stages (two, because NCCL runs what one pair exchanges in order), `tied` by the stages
    that share trained tensors.
    """

    def __init__(self, table: Table, rank: int, timeout: timedelta = TIMEOUT) -> None:
        self.rank, self.sent = rank, Counter[str]()
        mesh, self.timeout = table.mesh, timeout
        self.axes = {
            axis.name: self.make(axis.name, mesh, (number,))
            for number, axis in enumerate(mesh.axes)
        }
        self.roles: dict[str, Group] = {}
        for role in (r for r in ROLES.values() if r.batch):
            members = tuple(i for i, name in enumerate(table.roles) if name == role.name)
            if len(members) == 1:
                self.roles[role.name] = self.axes[mesh.axes[members[0]].name]
            else:
                self.roles[role.name] = self.make(role.name, mesh, members)
        lines = tuple(i for i, name in enumerate(table.roles) if ROLES[name].stages)
        self.down = self.make("stages, forward", mesh, lines)
        self.up = self.make("stages, backward", mesh, lines)
        self.stage = self.down.index
        self.tied = {
            stages: self.share(stages)
            for stages in sorted({h.stages for h in table.held if h.trainable})
            if len(stages) > 1
        }

    def make(self, name: str, mesh: Mesh, axes: tuple[int, ...]) -> Group:
        return make_group(name, mesh.groups(axes), self.rank, self.sent, self.timeout)

    def share(self, stages: tuple[int, ...]) -> Group:
        """The ranks of these stages along the pipeline; the other stages make a group as well."""
        line = self.down.ranks
        inside = tuple(line[s] for s in stages)
        others = tuple(rank for rank in line if rank not in inside)
        return make_group("shared tensors", (inside, others), self.rank, self.sent, self.timeout)
