"""Parameters and buffers of one rank: values, gradients, and the shards that the optimizer updates.

A tensor is first sharded as its layout says (over `tp`). The local shard is then flattened, padded
and sharded again over three nested groups, each possibly of one rank:

    flat local shard, padded      N
    value in memory               N / zero3                 gathered before each use
    gradient accumulated          N / zero3 / zero2         reduce-scattered after each backward
    updated by the optimizer      N / zero3 / zero2 / zero1 reduce-scattered at the end of the step

Where only a fraction of a tensor is sharded over zero3, the rank keeps its shard of that fraction and
all of the remainder, whose gradient is summed over zero3 at the end of the step.

Gradients are sums over micro-batches and over the axes that split data, never averages: the loss is
normalised over the full batch already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from ...ir.compression.program import Payload
from ...ir.model.layout import shard_position
from ...ir.plan.program import BUCKETS_AHEAD, ParameterSpec, ProgramTable
from ...ir.plan.strategy import ZERO_ROLES
from ..comm.buckets import Transport
from ..comm.mesh_collectives import Comm
from ..comm.program_groups import MeshGroups
from ..comm.slicing import flatten, local_shard
from ..compression.optimizers.flat import FlatOptimizer
from ..compression.transports import Transports
from ..host_memory import host_copy, wait_for_copies
from .exchanges.gradient_reductions import GradientReductions
from .exchanges.updated_weights import UpdatedWeights
from .exchanges.weight_gathers import WeightGathers
from .experts.replicas import ExpertReplicas
from .initialization import InitialValues
from .local_parameter import FlatShardGroups, LocalParameter, inner_shard, shard


class ParameterStore:
    """All parameters and buffers of this rank's stage, by name."""

    def __init__(
        self,
        table: ProgramTable,
        groups: MeshGroups,
        comms: Sequence[Comm],
        initial: InitialValues,
        device: torch.device,
        transports: Transports,
    ) -> None:
        self.table, self.groups, self.comms, self.device = table, groups, comms, device
        self.transports = transports
        self.compressed_optimizer: FlatOptimizer | None = None  # sums partial gradients itself
        self.flat_groups: tuple[FlatShardGroups, ...] = tuple(
            tuple(roles[level] for level in ZERO_ROLES) for roles in groups.roles
        )
        self.specs = {name: spec for spec in table.state_tensors for name in spec.names()}
        self.replicas = self.make_replicas()
        self.parameters = {
            name: self.create(name, spec, initial)
            for name, spec in self.specs.items()
            if groups.stage in spec.stages
        }
        limit_bytes = table.in_flight_bytes
        weights = partial(self.transport_of, "weights", level=0)
        self.gathers = WeightGathers(weights, limit_bytes)
        self.reductions = GradientReductions(self, limit_bytes)
        self.updated = UpdatedWeights(BUCKETS_AHEAD if limit_bytes else 0)

    # initialization

    def make_replicas(self) -> ExpertReplicas:
        """The replicas of experts on this rank."""
        return ExpertReplicas(self.table, self.groups)

    def create(self, name: str, spec: ParameterSpec, initial: InitialValues) -> LocalParameter:
        """Take this rank's shard of the full initial tensor."""
        groups = self.flat_groups[spec.mesh]
        p, g, o = (group.size for group in groups)
        degrees = (p if spec.kind == "parameter" else 1, 1, 1)
        if spec.kind == "parameter" and spec.trainable:
            degrees = (p, g, o)
        local = self.layout_shard(spec, initial.stored(name, spec))
        sharding = spec.flat_shard(tuple(local.shape), degrees)
        exact = shard(groups, flatten(local, sharding.padded_elements), sharding, 1)
        exact = exact.to(getattr(torch, self.table.stepped_dtype(spec)))
        flat = exact.to(self.device, getattr(torch, spec.type.dtype), copy=True)
        parameter = LocalParameter(name, spec, tuple(local.shape), sharding, flat)
        self.replicas.with_room(parameter)
        flat = parameter.memory
        if spec.kind == "parameter" and spec.trainable:
            compressed = self.transports.compresses_weights(spec.mesh)
            parameter.has_master = (
                exact.dtype != flat.dtype
                or (parameter.total_degree > 1 and compressed)
                or self.steps_on_host
            )
            leaf = self.leaf_view(parameter, exact if parameter.has_master else flat)
            parameter.leaf = torch.nn.Parameter(
                self.stepped_copy(leaf) if parameter.has_master else leaf
            )
        return parameter

    @property
    def steps_on_host(self) -> bool:
        """Whether the optimizer steps on copies in host memory."""
        return self.table.steps_on_host

    def stepped_copy(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of a value where the optimizer steps; on its way to a host it may still be."""
        if self.steps_on_host:
            return host_copy(x, self.device, dtype)
        return x.to(self.device, dtype or x.dtype, copy=True)

    def layout_shard(self, spec: ParameterSpec, full: Tensor) -> Tensor:
        mesh = self.table.meshes[spec.mesh]
        full = full[list(spec.order)] if spec.order else full
        return local_shard(full, spec.factors, spec.layout, mesh, mesh.coordinate(self.groups.rank))

    def leaf_view(self, parameter: LocalParameter, flat: Tensor) -> Tensor:
        """The part that the optimizer updates, of a flat tensor like the parameter's."""
        if parameter.total_degree == 1:
            return parameter.unpadded(flat)
        inner = inner_shard(self.flat_groups[parameter.spec.mesh], flat, parameter.sharding, 3)
        return inner.view(-1, parameter.sharding.row) if parameter.spec.sparse_gradient else inner

    # forward and backward

    def fetch(self, names: list[str]) -> list[Tensor]:
        """Local shards for one call. Those sharded over zero3 are all-gathered, unless they have been
        already (`prefetch`); the caller frees them."""
        parameters = [self.parameters[name] for name in names]
        gathered = {
            name: self.parameters[name].unpadded(flat)
            for name, flat in self.gathers.take(parameters).items()
        }
        local = (gathered[p.name] if p.name in gathered else p.unpadded(p.flat) for p in parameters)
        pairs = zip(parameters, local, strict=True)
        return [self.replicas.with_replicas(p, value) for p, value in pairs]

    def prefetch(self, names: Sequence[str]) -> None:
        """Start to gather what a later call fetches, beside what runs before it."""
        self.gathers.start(self.parameters[name] for name in names)

    def accumulate(self, gradients: list[tuple[str, Tensor]]) -> None:
        """Reduce the gradients of one backward call and add them up; empties the list."""
        self.reductions.accumulate(gradients)

    def transport_of(
        self, payload: Payload, parameters: Iterable[LocalParameter], level: int
    ) -> Transport:
        """Transport over the ranks of one flat sharding level (0: zero3, 1: zero2, 2: zero1); the
        parameters must be of one mesh."""
        numbers = {parameter.spec.mesh for parameter in parameters}
        assert len(numbers) == 1, f"tensors of meshes {numbers} in one collective"
        mesh = numbers.pop()
        return self.transports.transport(
            payload, mesh, ZERO_ROLES[level], self.flat_groups[mesh][level]
        )

    # once per step

    def synchronize(self, loss_scale: float = 1.0) -> None:
        """Complete the gradient sums. What the optimizer gets is divided by `loss_scale`. It may write
        afterwards: nothing that it updated before travels any more."""
        self.updated.settle()
        for parameter, flat in self.reductions.complete():
            leaf = parameter.leaf
            assert leaf is not None
            gradient = flat if flat.is_sparse else flat.view(leaf.shape)
            self.add_gradient(leaf, gradient, loss_scale)
        if self.steps_on_host:
            wait_for_copies(self.device)

    def add_gradient(self, leaf: Tensor, gradient: Tensor, loss_scale: float = 1.0) -> None:
        """Add a whole sum to what the optimizer steps by."""
        if self.steps_on_host:
            gradient = host_copy(gradient, self.device, leaf.dtype)
            if leaf.grad is not None or loss_scale != 1.0:
                wait_for_copies(self.device)
        gradient = gradient.to(leaf.dtype)
        gradient = gradient if loss_scale == 1.0 else gradient / loss_scale
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    def remainder(self, levels: FlatShardGroups, parameter: LocalParameter, flat: Tensor) -> Tensor:
        """The part of an optimizer shard that belongs to the unsharded remainder (a view)."""
        first = levels[1].index * parameter.sharding.degrees[2] + levels[2].index
        return flat[max(parameter.sharding.shard_elements - first * flat.numel(), 0) :]

    def summed_dtype(self, parameter: LocalParameter) -> torch.dtype:
        """The element type in which gradients of a parameter are summed."""
        dtype: torch.dtype = getattr(torch, self.table.summed_dtype(parameter.spec))
        return dtype

    def trainable(self) -> list[LocalParameter]:
        return [parameter for parameter in self.parameters.values() if parameter.leaf is not None]

    def gather_updated(self) -> None:
        """Round master weights, and start to all-gather the shards that other ranks updated, after
        the optimizer's step: in the order in which calls read them."""
        updated: list[LocalParameter] = []
        for p in self.in_order_of_use(self.trainable()):
            if p.stepped_whole or p.leaf is None:
                continue
            if p.sharding.degrees[1] * p.sharding.degrees[2] > 1:
                updated.append(p)
            elif p.has_master:
                self.leaf_view(p, p.flat).copy_(p.leaf.detach(), non_blocking=True)
        for _, members in self.by_mesh(updated):
            self.updated.gather(members, partial(self.transport_of, "weights", members))
        self.updated.begin()
        self.replicas.expire()

    def in_order_of_use(self, parameters: Iterable[LocalParameter]) -> list[LocalParameter]:
        """Parameters by the first call that reads them."""
        return sorted(parameters, key=lambda p: self.first_uses.get(p.name, 0))

    @cached_property
    def uses(self) -> list[tuple[str, int]]:
        """Pairs of a tensor and a call that reads it, once per argument."""
        return [
            (run.name(names, call), call)
            for run in self.table.calls
            for call in range(run.first, run.last)
            for names in run.state_tensors
        ]

    @cached_property
    def first_uses(self) -> dict[str, int]:
        """By tensor, the first call that reads it."""
        return dict(sorted(self.uses, key=lambda use: -use[1]))

    def readers(self) -> Mapping[str, int]:
        """By tensor that gradients reach, how often calls of a step read it."""
        counts = Counter(name for name, _ in self.uses if self.specs[name].reached)
        return {name: count * self.table.micro_batches for name, count in counts.items()}

    def by_mesh(
        self, parameters: Iterable[LocalParameter]
    ) -> Iterator[tuple[int, list[LocalParameter]]]:
        """Parameters by the number of their mesh; those of one mesh are sharded over the same groups."""
        members: dict[int, list[LocalParameter]] = {}
        for parameter in parameters:
            members.setdefault(parameter.spec.mesh, []).append(parameter)
        yield from members.items()

    def zero_gradients(self) -> None:
        self.drop_accumulated()
        for parameter in self.trainable():
            assert parameter.leaf is not None
            parameter.leaf.grad = None

    def drop_accumulated(self) -> None:
        """Drop what backward has accumulated and `synchronize` has not summed yet."""
        self.reductions.clear()
        self.replicas.clear()

    def replace_buffers(self, updates: Mapping[str, Tensor]) -> None:
        """Set new values of buffers."""
        for name, value in updates.items():
            self.parameters[name].flat.copy_(value.detach().reshape(-1))

    def share_buffers(self, names: Sequence[str]) -> None:
        """Give all stages that read buffers what their first stage has written."""
        down = self.groups.down
        for name in names if down.size > 1 else ():
            spec = self.specs[name]
            mine = self.parameters.get(name)
            empty = torch.empty(
                spec.type.shape, dtype=getattr(torch, spec.type.dtype), device=self.device
            )
            value = down.broadcast(empty if mine is None else mine.flat, spec.stages[0])
            if mine is not None:
                mine.flat.copy_(value)

    # full tensors

    def gather(self, parameter: LocalParameter, leaf: Tensor, levels: int = 3) -> Tensor:
        """The full tensor, gathered from the shards that the ranks of the stage have after the first
        `levels` levels of flat sharding: with 3, their optimizer shards."""
        flat = leaf.detach().to(self.device).to_dense().reshape(-1)
        outer, *inner = list(
            zip(self.flat_groups[parameter.spec.mesh], parameter.sharding.degrees, strict=True)
        )[:levels]
        for group, size in reversed(inner):
            if size > 1:
                flat = group.all_gather(flat.contiguous()).reshape(-1)
        if outer[1] > 1 and parameter.sharding.shard_elements:
            shard, remainder = (
                flat[: parameter.sharding.shard_elements],
                flat[parameter.sharding.shard_elements :],
            )
            flat = torch.cat((outer[0].all_gather(shard.contiguous()).reshape(-1), remainder))
        return self.unshard_layout(parameter, parameter.unpadded(flat))

    def gather_value(self, parameter: LocalParameter) -> Tensor:
        if parameter.leaf is not None and self.compressed_optimizer is not None:
            return self.gather(parameter, self.compressed_optimizer.mean_weights(parameter.leaf))
        if parameter.leaf is not None and parameter.has_master:
            return self.gather(parameter, parameter.leaf)
        return self.gather(parameter, parameter.flat, 1)

    def reduced_gradient(self, parameter: LocalParameter) -> Tensor:
        """The reduced gradient of the optimizer shard, also where the optimizer does the reduction."""
        assert parameter.leaf is not None
        assert parameter.leaf.grad is not None
        gradient = parameter.leaf.grad
        return (
            gradient
            if self.compressed_optimizer is None
            else self.compressed_optimizer.levels.all.all_reduce(gradient)
        )

    def unshard_layout(self, parameter: LocalParameter, local: Tensor) -> Tensor:
        """All-gather a local shard over the axes of its layout, innermost first."""
        layout, mesh = list(parameter.spec.layout), self.table.meshes[parameter.spec.mesh]
        for axis in reversed(range(len(layout))):
            state = layout[axis]
            if isinstance(state, tuple):
                dim, outer = shard_position(parameter.spec.factors, tuple(layout), mesh, state)
                comm = self.comms[parameter.spec.mesh]
                local = comm.all_gather(local, mesh.axes[axis].name, dim, outer)
                layout[axis] = "R"
        order = torch.tensor(parameter.spec.order, device=local.device)
        return local[order.argsort()] if len(order) else local

    def scatter(self, parameter: LocalParameter, full: Tensor) -> Tensor:
        """This rank's optimizer shard of a full tensor: the inverse of `gather`."""
        flat = self.flat_shard(parameter, full)
        if parameter.leaf is None:
            return flat
        return flat.view(parameter.leaf.shape).to(parameter.leaf.device)

    def flat_shard(self, parameter: LocalParameter, full: Tensor, levels: int = 3) -> Tensor:
        """This rank's flat shard of a full tensor after the first `levels` levels of flat sharding."""
        flat = flatten(self.layout_shard(parameter.spec, full), parameter.sharding.padded_elements)
        return shard(self.flat_groups[parameter.spec.mesh], flat, parameter.sharding, levels).to(
            self.device, copy=True
        )

    def set_value(self, name: str, full: Tensor) -> None:
        """Set a tensor's value from the full tensor."""
        parameter = self.parameters[name]
        parameter.flat.copy_(self.flat_shard(parameter, full.to(parameter.flat.dtype), 1))
        if parameter.leaf is not None and parameter.has_master:
            parameter.leaf.data.copy_(self.scatter(parameter, full.to(parameter.leaf.dtype)))
        self.replicas.expire()

    def reorder(self, table: ProgramTable) -> None:
        """Take note that tensors lie as in this table, which has other orders."""
        self.table = table
        self.specs = {name: spec for spec in table.state_tensors for name in spec.names()}
        for name, parameter in self.parameters.items():
            parameter.spec = self.specs[name]
        self.replicas.moves += 1


def _named(names: Sequence[str], tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, without a list that would keep them alive."""
    return zip(names, tensors, strict=True)
