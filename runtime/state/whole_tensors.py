"""Tensors that the optimizer must see whole: each is stepped by one of the ranks that shard it.

    gradient shards ──gather──▶ owner: whole gradient ──step──▶ whole value ──broadcast──▶ shards

The owner has the exact value and the optimizer's states; owners are chosen so that the ranks of a
group have about equally many elements.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.errors import MismatchError
from ...ir.model.layout import REPLICATE
from ...ir.plan.program import ParameterSpec, ProgramTable
from ...ir.plan.strategy import ROLES, ZERO_ROLES
from ..comm.process_group import Group
from ..comm.program_groups import MeshGroups
from ..host_memory import wait_for_copies
from .initialization import InitialValues
from .local_parameter import LocalParameter
from .parameters import ParameterStore
from .unsharded import gradients

SharingKey = tuple[int, tuple[int, ...]]  # a mesh, and the axes over which a tensor is shared


class WholeTensor(NamedTuple):
    """A tensor that one rank of `group` steps whole: `leaf` on the rank with index `owner`."""

    parameter: LocalParameter
    group: Group
    owner: int
    leaf: torch.nn.Parameter | None


def sharding_axes(table: ProgramTable, spec: ParameterSpec) -> tuple[int, ...]:
    """Numbers of the mesh axes along which the ranks of a stage have different parts of a
    parameter that is trained."""
    axes = table.meshes[spec.mesh].axes
    layout = (*spec.layout, *(REPLICATE for _ in axes[len(spec.layout) :]))
    return tuple(
        number
        for number, (axis, state) in enumerate(zip(axes, layout, strict=True))
        if axis.size > 1 and (axis.name in ZERO_ROLES or state != REPLICATE)
    )


class WholeTensors:
    """The tensors of this rank's stage, out of `names`, that the optimizer steps whole.

    `with_replicas`: replicas do not step a tensor once more each, but one of them does for all.
    Every rank creates the groups in the same order.
    """

    def __init__(
        self,
        store: ParameterStore,
        groups: MeshGroups,
        initial: InitialValues,
        names: Collection[str],
        *,
        with_replicas: bool = False,
    ) -> None:
        self.store = store
        self.tensors: dict[str, WholeTensor] = {}
        self.elsewhere: dict[str, torch.nn.Parameter] = {}  # stepped here too, of other stages
        members: dict[SharingKey, list[str]] = {}
        for name, spec in store.specs.items():
            if name in names:
                axes = (
                    _all_axes(store.table, spec)
                    if with_replicas
                    else sharding_axes(store.table, spec)
                )
                members.setdefault((spec.mesh, axes), []).append(name)
        for (mesh, axes), shared in sorted(members.items()):
            group = groups.pool.group("owners of tensors", store.table.meshes[mesh].groups(axes))
            if group.size > 1:
                self.assign(group, [n for n in shared if n in store.parameters], initial)

    def assign(self, group: Group, names: Iterable[str], initial: InitialValues) -> None:
        """Give each tensor an owner in the group, the largest first to whoever has least."""
        elements = [0] * group.size
        for name in sorted(names, key=lambda n: (-_elements(self.store.specs[n]), n)):
            spec, parameter = self.store.specs[name], self.store.parameters[name]
            owner = min(range(group.size), key=elements.__getitem__)
            elements[owner] += _elements(spec)
            leaf = None
            if owner == group.index:
                dtype = self.store.table.stepped_dtype(spec)
                value = initial.value(name, spec, dtype)
                leaf = torch.nn.Parameter(self.store.stepped_copy(value))
            self.tensors[name] = WholeTensor(parameter, group, owner, leaf)
            parameter.stepped_whole = True

    def refuse_rows(self, optimizer: str, evidence: str) -> None:
        """Raise MismatchError where a tensor whose gradient is of rows would be collected whole."""
        for name in self.tensors:
            if self.store.specs[name].sparse_gradient:
                raise MismatchError(
                    f"{optimizer} must see {name} whole ({evidence}), which has gradients of the rows "
                    f"that were read: make that embedding without sparse=True, or plan with "
                    f"roles=('dp',)"
                )

    def leaf(self, name: str) -> Tensor | None:
        """What the optimizer steps on of a tensor on this rank; None where it steps elsewhere."""
        if name in self.tensors:
            return self.tensors[name].leaf
        return self.store.parameters[name].leaf if name in self.store.parameters else None

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Give the owners the whole gradients."""
        for parameter, _, _, leaf in self.tensors.values():
            assert parameter.leaf is not None
            if parameter.leaf.grad is None:
                continue
            gradient = self.store.gather(parameter, parameter.leaf.grad)
            if leaf is not None:
                leaf.grad = self.store.stepped_copy(gradient, leaf.dtype)
        if self.store.steps_on_host:
            wait_for_copies(self.store.device)

    @torch.no_grad()
    def distribute_values(self) -> None:
        """Give all ranks their shards of what the owners have updated."""
        for name, (parameter, group, owner, leaf) in self.tensors.items():
            assert parameter.leaf is not None
            if parameter.leaf.grad is None:
                continue
            self.store.set_value(name, group.broadcast(self.value_or_empty(name, leaf), owner))
            if leaf is not None:
                leaf.grad = None

    def value_or_empty(self, name: str, leaf: Tensor | None) -> Tensor:
        """The value on the owner, uninitialised memory for it elsewhere."""
        if leaf is not None:
            return leaf.detach().to(self.store.device)
        spec = self.store.specs[name]
        dtype = getattr(torch, self.store.table.stepped_dtype(spec))
        return torch.empty(spec.type.shape, dtype=dtype, device=self.store.device)

    def set_value(self, name: str, full: Tensor) -> None:
        """Set the owner's value, where this rank is the owner of such a tensor."""
        leaf = self.tensors[name].leaf if name in self.tensors else None
        if leaf is not None:
            leaf.data.copy_(full)


def _elements(spec: ParameterSpec) -> int:
    return torch.Size(spec.type.shape).numel()


def _all_axes(table: ProgramTable, spec: ParameterSpec) -> tuple[int, ...]:
    """All axes along which the ranks of one stage lie."""
    axes = table.meshes[spec.mesh].axes
    return tuple(i for i, axis in enumerate(axes) if axis.size > 1 and not ROLES[axis.name].stages)


class EverywhereTensors(WholeTensors):
    """All tensors of the model whole on every rank, for an optimizer that looks at several at once.

    Every rank makes the same step on the same gradients, and takes its shards of what comes out: values,
    gradients and states take as much memory as in one process.
    """

    def __init__(self, store: ParameterStore, groups: MeshGroups, initial: InitialValues) -> None:
        super().__init__(store, groups, initial, ())
        self.groups = groups
        self.leaves = {
            name: torch.nn.Parameter(
                store.stepped_copy(initial.value(name, spec, store.table.stepped_dtype(spec)))
            )
            for name, spec in store.specs.items()
            if spec.trainable
        }
        here = store.parameters
        self.elsewhere = {name: leaf for name, leaf in self.leaves.items() if name not in here}
        for parameter in store.trainable():
            parameter.stepped_whole = True
            alone = groups.pool.group("this rank", store.table.mesh.groups(()))
            self.tensors[parameter.name] = WholeTensor(
                parameter, alone, 0, self.leaves[parameter.name]
            )

    def leaf(self, name: str) -> Tensor | None:
        """The whole tensor, also of other stages."""
        return self.leaves.get(name)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Give every rank the whole gradients of all stages."""
        for name, gradient in gradients(self.store, self.groups).items():
            leaf = self.leaves[name]
            leaf.grad = gradient.to(leaf.device, leaf.dtype)

    @torch.no_grad()
    def distribute_values(self) -> None:
        """Take this rank's shards of what was updated."""
        for name, leaf in self.leaves.items():
            if name in self.store.parameters and leaf.grad is not None:
                self.store.set_value(name, leaf.detach())
            leaf.grad = None

    def set_value(self, name: str, full: Tensor) -> None:
        """Set a value; of other stages too."""
        if name in self.leaves:
            self.leaves[name].data.copy_(full)
