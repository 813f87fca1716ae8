"""Sums of gradients over device groups that have the same parameters, held in different shards.

Groups have run different micro-batches, and the loss is normalised over the whole batch, so the sum is
plain. The first group of a parameter adds up what all ranks have and sends the sum to the others, one
rank for each part of a sum; so all groups go on with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ....ir.plan.strategy import ROLES
from ...comm.program_groups import DeviceGroups, MeshGroups
from ...comm.transfer import Transfer
from ...state.local_parameter import LocalParameter
from ...state.local_tensor import TensorBox, shard_of
from ...state.parameters import ParameterStore
from .box_exchange import BoxMessage, Extent, extents, overlaps, receive, send

ACCUMULATED = 2  # levels of flat sharding of a gradient before the step ends: zero3, zero2


class GradientPart(NamedTuple):
    """What a rank has of the gradient of a parameter: boxes; whether it sends them (of replicas one
    does), and whether it takes the sum (of those that hold parts of one the first)."""

    boxes: tuple[Extent, ...]
    sends: bool
    takes: bool


class GradientTotals:
    """Sums gradients over the device groups of a program."""

    def __init__(self, store: ParameterStore, groups: MeshGroups, devices: DeviceGroups) -> None:
        self.store, self.groups, self.devices = store, groups, devices
        self.parts: list[dict[str, GradientPart]] | None = None

    def run(self) -> None:
        """Replace what backward has accumulated by the sum over groups."""
        shared = {
            p.name: p
            for p in self.store.trainable()
            if len(self.devices.holders[p.name]) > 1 and p.gradient is not None
        }
        if self.parts is None:
            mine = {name: self.part(p) for name, p in shared.items()}
            self.parts = self.groups.everyone.gather_objects(mine, "boxes of gradients")
        # in one order on all ranks, whose tables list tensors by their own layers
        boxes = {name: self.boxes(shared[name]) for name in sorted(shared)}
        self.to_owner(boxes)
        for name, p in shared.items():
            if not self.part_of(name, self.groups.pool.rank).takes and p.gradient is not None:
                p.gradient.zero_()
        self.to_others(boxes)

    def boxes(self, parameter: LocalParameter) -> Sequence[TensorBox]:
        """This rank's boxes of a gradient, which it may change."""
        assert parameter.gradient is not None
        if not parameter.owns_gradient:
            parameter.gradient = parameter.gradient.clone()
            parameter.owns_gradient = True
        return shard_of(self.store, parameter, parameter.gradient, ACCUMULATED).chunks

    def part(self, parameter: LocalParameter) -> GradientPart:
        """What this rank has of the gradient of a parameter."""
        spec, mesh = parameter.spec, self.store.table.meshes[parameter.spec.mesh]
        coordinate = mesh.coordinate(self.groups.rank)
        sends = takes = True
        for axis, at, state in zip(mesh.axes, coordinate, spec.layout, strict=True):
            partial = axis.name in spec.partial_axes or axis.name == "zero1"
            if at and partial:
                takes = False
            elif at and not isinstance(state, tuple) and not ROLES[axis.name].shards:
                sends = False
        return GradientPart(extents(self.boxes(parameter)), sends, takes)

    def part_of(self, name: str, rank: int) -> GradientPart:
        assert self.parts is not None
        return self.parts[rank][name]

    def ranks(self, name: str, *, owner: bool) -> list[int]:
        """The ranks of the first group that has a parameter, or of the others."""
        first, *others = self.devices.holders[name]
        numbers = [first] if owner else others
        return [rank for n in numbers for rank in self.devices.programs[n].ranks]

    def to_owner(self, boxes: dict[str, Sequence[TensorBox]]) -> None:
        """Add up all parts on the first group's ranks."""
        incoming, outgoing = dict[int, list[Tensor]](), dict[int, list[Tensor]]()
        for name, mine in boxes.items():
            owners = [r for r in self.ranks(name, owner=True) if self.part_of(name, r).takes]
            everyone = [*self.ranks(name, owner=True), *self.ranks(name, owner=False)]
            for target in owners:
                for source in (r for r in everyone if self.part_of(name, r).sends and r != target):
                    if self.part_of(name, source).takes and source in owners:
                        continue  # another replica of the sum, or another box of it
                    self.match(name, mine, (source, target), outgoing, incoming)
        self.exchange(outgoing, incoming, "gradients to sum", add=True)

    def to_others(self, boxes: dict[str, Sequence[TensorBox]]) -> None:
        """Send the sums to the ranks of the other groups."""
        incoming, outgoing = dict[int, list[Tensor]](), dict[int, list[Tensor]]()
        for name, mine in boxes.items():
            owners = [
                r
                for r in self.ranks(name, owner=True)
                if self.part_of(name, r).takes and self.part_of(name, r).sends
            ]
            for source in owners:
                for target in self.ranks(name, owner=False):
                    if self.part_of(name, target).takes:
                        self.match(name, mine, (source, target), outgoing, incoming)
        self.exchange(outgoing, incoming, "sums of gradients", add=False)

    def match(
        self,
        name: str,
        mine: Sequence[TensorBox],
        ends: tuple[int, int],
        outgoing: dict[int, list[Tensor]],
        incoming: dict[int, list[Tensor]],
    ) -> None:
        """Note what this rank sends or receives of a gradient between two ranks."""
        source, target = ends
        if source == self.groups.pool.rank:
            others = self.part_of(name, target).boxes
            outgoing.setdefault(target, []).extend(overlaps(mine, others, mine_first=True))
        elif target == self.groups.pool.rank:
            others = self.part_of(name, source).boxes
            incoming.setdefault(source, []).extend(overlaps(mine, others, mine_first=False))

    def exchange(
        self,
        outgoing: dict[int, list[Tensor]],
        incoming: dict[int, list[Tensor]],
        what: str,
        *,
        add: bool,
    ) -> None:
        """Send and receive, one message for each pair of ranks."""
        group, transfers = self.groups.up, list[Transfer]()
        for peer in sorted(outgoing):
            transfer = send(group, BoxMessage(peer, tuple(outgoing[peer])), what)
            transfers += [] if transfer is None else [transfer]
        for peer in sorted(incoming):
            receive(group, BoxMessage(peer, tuple(incoming[peer])), what, add=add)
        for transfer in transfers:
            transfer.wait()
