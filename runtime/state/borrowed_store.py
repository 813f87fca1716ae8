"""Parameters and buffers of one program, for another program of the same module.

Programs of other batch shapes, and those that evaluate, work on the tensors of the program that
trains. Where both have a tensor in the same shards they share it. Elsewhere (another split was found
better for the other shape) the borrower has a copy, which is refreshed before a step, and what the
step leaves in it (gradients, buffers) goes back to the lender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...ir.model.layout import shard_position
from ...ir.plan.program import ParameterSpec, ProgramTable
from ..comm.mesh_collectives import Comm
from ..comm.program_groups import MeshGroups
from ..compression.transports import Transports
from . import unsharded
from .initialization import InitialValues
from .local_parameter import LocalParameter
from .parameters import ParameterStore

Version = tuple[int, ...]


class BorrowedStore(ParameterStore):
    """The tensors of `lender` for the program of another table; all ranks call its methods together."""

    def __init__(
        self,
        lender: ParameterStore,
        table: ProgramTable,
        groups: MeshGroups,
        comms: Sequence[Comm],
        transports: Transports,
    ) -> None:
        self.lender = lender
        self.copied = [
            name
            for spec in table.state_tensors
            for name in spec.names()
            if spec.kind != "constant" and not same_shards(lender, name, table, spec)
        ]
        self.version: Version | None = None
        empty = InitialValues(torch.nn.Module())
        super().__init__(table, groups, comms, empty, lender.device, transports)

    def create(self, name: str, spec: ParameterSpec, initial: InitialValues) -> LocalParameter:
        """The lender's tensor, or room for a copy of it."""
        if spec.kind == "constant":
            return super().create(name, spec, initial)
        if name in self.copied:
            dtype = getattr(torch, spec.type.dtype)
            initial.tensors[name] = torch.zeros((), dtype=dtype).expand(spec.type.shape)
            return super().create(name, spec, initial)
        return replace(self.lender.parameters[name], spec=spec, gradient=None)

    def refresh(self, version: Version) -> None:
        """Copy the lender's values, unless they are of the `version` that is here already."""
        if version == self.version:
            return
        for name in self.copied:
            self.set_full(self, name, self.full_value(self.lender, name))
        self.version = version

    def return_gradients(self) -> None:
        """Add the gradients of copies to the lender's."""
        trained = [n for n in self.copied if self.specs[n].trainable]
        if not trained:
            return
        for name, full in unsharded.gradients(self, self.groups, trained).items():
            leaf = self.lender.parameters[name].leaf if name in self.lender.parameters else None
            if leaf is not None:
                shard = self.lender.scatter(self.lender.parameters[name], full).to(leaf.dtype)
                leaf.grad = shard if leaf.grad is None else leaf.grad + shard
        for name in trained:
            if name in self.parameters:
                own = self.parameters[name].leaf
                assert own is not None
                own.grad = None

    def return_buffers(self, updated: Sequence[str]) -> None:
        """Give the lender the buffers that a step has `updated`."""
        for name in self.copied:
            if name in updated:
                self.set_full(self.lender, name, self.full_value(self, name))

    def full_value(self, store: ParameterStore, name: str) -> Tensor:
        make = partial(unsharded.value_of, store, name)
        return unsharded.broadcast_from_owner(store, store.groups, name, make)

    @staticmethod
    def set_full(store: ParameterStore, name: str, full: Tensor) -> None:
        if name in store.parameters:
            store.set_value(name, full)


def same_shards(
    lender: ParameterStore, name: str, table: ProgramTable, spec: ParameterSpec
) -> bool:
    """Whether every rank has the same part of a tensor in the lender's program and in another one."""
    known = lender.specs.get(name)
    if known is None:
        return False
    one, other = (
        (s.type, s.kind, s.trainable, s.stages, s.fraction, t.meshes[s.mesh], positions(t, s))
        for t, s in ((lender.table, known), (table, spec))
    )
    return one == other


def positions(table: ProgramTable, spec: ParameterSpec) -> tuple[object, ...]:
    """By mesh axis, the placement of a tensor: (dim, elements outside the shards) where sharded."""
    mesh = table.meshes[spec.mesh]
    return tuple(
        shard_position(
            spec.factors, spec.layout[:axis] + ("R",) * (len(spec.layout) - axis), mesh, p
        )
        if isinstance(p, tuple)
        else p
        for axis, p in enumerate(spec.layout)
    )
