"""Parameters and buffers of one program, for another program of the same module.

Programs of other batch shapes, of other plans, and those that evaluate, work on the tensors of the
program that trains. Where both have a tensor in the same shards they share it. Elsewhere the borrower
has a copy, which is refreshed before a step, and what the step leaves in it (gradients, buffers) goes
back to the lender; every rank receives what it lacks and no more (`redistribution`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....ir.lowering.redistribute import STEPPED, VALUES, ShardLevels
from ....ir.model.layout import shard_position
from ....ir.plan.program import ParameterSpec, ProgramTable
from ...comm.mesh_collectives import Comm
from ...comm.program_groups import MeshGroups
from ...compression.transports import Transports
from ...host_memory import wait_for_copies
from .. import unsharded
from ..exchanges.row_gradients import rows_read, rows_where
from ..experts.replicas import ExpertReplicas
from ..initialization import InitialValues
from ..local_parameter import LocalParameter
from ..local_tensor import LocalTensor, shard_of
from ..parameters import ParameterStore
from .redistribution import Redistribution

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
        self.moves: dict[Hashable, Redistribution] = {}
        empty = InitialValues(torch.nn.Module())
        super().__init__(table, groups, comms, empty, lender.device, transports)

    @property
    def steps_on_host(self) -> bool:
        """No optimizer steps on what is borrowed."""
        return False

    def make_replicas(self) -> ExpertReplicas:
        """Those of the lender where both have the weights in the same shards."""
        replicas = super().make_replicas()
        replicas.share(self.lender.replicas, self.specs.keys() - set(self.copied))
        return replicas

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
        """Copy the lender's values, unless they are of the `version` (steps, then batches) that is here:
        between two steps only what no optimizer moves."""
        if version != self.version:
            stepped = self.version is None or version[0] != self.version[0]
            names = tuple(n for n in self.copied if stepped or not self.specs[n].trainable)
            exact = self._lends_exact
            lent = (_exact_values if exact else _values)(self.lender, names)
            arriving = self._moves(names, self.lender, self, STEPPED if exact else VALUES, VALUES)
            arriving.run(self.groups.everyone, lent, _values(self, names))
        self.version = version

    @property
    def _lends_exact(self) -> bool:
        """Whether the lender's values in memory have been compressed: the optimizer has exact ones."""
        lender, meshes = self.lender, range(len(self.lender.table.meshes))
        compresses = any(map(lender.transports.compresses_weights, meshes))
        return compresses or lender.compressed_optimizer is not None

    def _moves(
        self, names: tuple[str, ...], source: ParameterStore, target: ParameterStore, *levels: int
    ) -> Redistribution:
        """Who sends what, worked out once for some tensors; `levels` of the source and of the target."""
        key = (names, source is self, levels, self.lender.replicas.moves)
        if key not in self.moves:
            types = (
                target.table.stepped_dtype(spec) if levels[1] == STEPPED else spec.type.dtype
                for spec in map(self.specs.__getitem__, names)
            )
            dtypes = {n: getattr(torch, t) for n, t in zip(names, types, strict=True)}
            self.moves[key] = Redistribution.between(
                source.table, target.table, dtypes, ShardLevels(*levels)
            )
        return self.moves[key]

    def return_gradients(self) -> None:
        """Add the gradients of copies to the lender's."""
        trained = [n for n in self.copied if self.specs[n].trainable]
        trained = unsharded.with_gradients(self, self.groups, trained)
        arrived = self._returned(trained, _gradients(self, trained))
        sparse = [name for name in trained if self.specs[name].sparse_gradient]
        read = self._returned(sparse, _gradients(self, sparse, rows_read)) if sparse else {}
        for name, gradient in arrived.items():
            leaf = self.lender.parameters[name].leaf
            assert leaf is not None
            gradient = rows_where(gradient, read[name]) if name in read else gradient
            self.lender.add_gradient(leaf, gradient)
        if self.lender.steps_on_host:
            wait_for_copies(self.device)
        for name in trained:
            if name in self.parameters:
                own = self.parameters[name].leaf
                assert own is not None
                own.grad = None

    def _returned(self, names: Sequence[str], tensors: dict[str, LocalTensor]) -> dict[str, Tensor]:
        """Tensors of the shape of gradients as the lender has its shards."""
        arrived = {
            name: torch.zeros_like(parameter.leaf, device=self.device)
            for name, parameter in self.lender.parameters.items()
            if name in names and parameter.leaf is not None
        }
        target = {
            name: shard_of(self.lender, self.lender.parameters[name], gradient, STEPPED)
            for name, gradient in arrived.items()
        }
        returning = self._moves(tuple(names), self, self.lender, STEPPED, STEPPED)
        returning.run(self.groups.everyone, tensors, target)
        return arrived

    def return_buffers(self, updated: Sequence[str]) -> None:
        """Give the lender the buffers that a step has `updated`."""
        names = tuple(name for name in self.copied if name in updated)
        returning = self._moves(names, self, self.lender, VALUES, VALUES)
        returning.run(self.groups.everyone, _values(self, names), _values(self.lender, names))


def _values(store: ParameterStore, names: Sequence[str]) -> dict[str, LocalTensor]:
    """What this rank has of tensors, in the memory where it lies."""
    here = [store.parameters[name] for name in names if name in store.parameters]
    return {p.name: shard_of(store, p, p.flat, VALUES) for p in here}


def _exact_values(store: ParameterStore, names: Sequence[str]) -> dict[str, LocalTensor]:
    """What this rank's optimizer steps on of tensors; all ranks together."""
    compressed = store.compressed_optimizer
    tensors: dict[str, LocalTensor] = {}
    for parameter in (store.parameters[name] for name in names if name in store.parameters):
        values = parameter.flat if parameter.leaf is None else parameter.leaf
        if parameter.leaf is not None and compressed is not None:
            values = compressed.mean_weights(parameter.leaf)
        tensors[parameter.name] = shard_of(store, parameter, values.contiguous(), STEPPED)
    return tensors


def _gradients(
    store: ParameterStore, names: Sequence[str], value: Callable[[Tensor], Tensor] = Tensor.to_dense
) -> dict[str, LocalTensor]:
    """This rank's shards of gradients, or of a value of their shape; zeros where a stage of several has
    none."""
    tensors: dict[str, LocalTensor] = {}
    for name in names:
        parameter = store.parameters.get(name)
        if parameter is not None and parameter.leaf is not None:
            leaf = parameter.leaf
            gradient = torch.zeros_like(leaf) if leaf.grad is None else value(leaf.grad)
            tensors[name] = shard_of(store, parameter, gradient, STEPPED)
    return tensors


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
