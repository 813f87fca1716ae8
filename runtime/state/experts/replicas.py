"""Replicas of experts: room beside a rank's experts, values from their homes, gradients to them.

    weights of a call   │ experts at home here (parameters) │ slots for replicas │
    forward             values of replicas come from their homes, once after every step
    backward            their gradients go home once per step, and are added to those of the home

What the optimizer, checkpoints and users see of a weight are the experts at home alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ....ir.analysis.expert_weights import expert_axis
from ....ir.plan.expert_placement import EMPTY, ExpertPlacement, at_home
from ....ir.plan.program import ProgramTable
from ...comm.expert_all_to_all import ExpertSlots
from ...comm.process_group import Group
from ...comm.program_groups import MeshGroups
from ..local_parameter import LocalParameter


class Replica(NamedTuple):
    """A replica in `slot` of rank `holder`, and its home: place `place` of rank `home`."""

    holder: int
    home: int
    slot: int
    place: int


class ExpertLayer:
    """The experts of a layer: its weights `names`, of which the ranks of `group` have different experts,
    and where these are. `wholes`: weights with their slots, where they lie in one tensor."""

    def __init__(
        self, names: tuple[str, ...], group: Group, axis: str, placement: ExpertPlacement
    ) -> None:
        self.names, self.group, self.axis = names, group, axis
        self.tails: dict[str, Tensor] = {}
        self.wholes: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.added: Counter[str] = Counter()  # gradients of this step, by weight
        self.outdated: set[str] = set()  # weights whose replicas have old values
        self.slots: ExpertSlots | None = None
        self.place(placement)

    @property
    def homes(self) -> int:
        """Experts at home on a rank."""
        return len(self.placement.homes[0])

    def place(self, placement: ExpertPlacement) -> None:
        """Change the placement; the weights of homes must be there."""
        self.placement, self.slots = placement, None
        places = {e: (r, i) for r, row in enumerate(placement.homes) for i, e in enumerate(row)}
        replicas = [
            Replica(holder, places[e][0], slot, places[e][1])
            for holder, row in enumerate(placement.replicas)
            for slot, e in enumerate(row)
            if e != EMPTY
        ]
        me = self.group.index
        self.here = sorted((r for r in replicas if r.holder == me), key=lambda r: (r.home, r.slot))
        self.elsewhere = sorted(
            (r for r in replicas if r.home == me), key=lambda r: (r.holder, r.slot)
        )
        self.expire()

    def expire(self) -> None:
        """Values of homes have changed."""
        self.outdated = set(self.names) if self.placement.has_replicas else set()

    def slots_on(self, device: torch.device) -> ExpertSlots:
        """The slots that rows are sent to."""
        if self.slots is None:
            self.slots = ExpertSlots(self.placement, self.axis, device)
        return self.slots

    def refresh(self, name: str, homes: Tensor) -> None:
        """Bring the replicas of a weight up to date; all ranks of the group together."""
        rows = homes.reshape(len(homes), -1)[[r.place for r in self.elsewhere]]
        holders, homes_of_mine = [r.holder for r in self.elsewhere], [r.home for r in self.here]
        arrived = self._exchange(rows, holders, homes_of_mine)
        tail = self.tails[name]
        for replica, row in zip(self.here, arrived, strict=True):
            tail[replica.slot] = row.view(tail.shape[1:])
        self.outdated.discard(name)

    def _exchange(self, rows: Tensor, to: Sequence[int], origins: Sequence[int]) -> Tensor:
        """Send rows to these ranks, one each in their order, and receive one for each of `origins`."""
        ranks, sent, received = range(self.group.size), Counter(to), Counter(origins)
        return self.group.exchange_rows(
            rows, [sent[r] for r in ranks], [received[r] for r in ranks]
        )

    def add(self, name: str, rows: Tensor) -> None:
        """Add gradients of this rank's replicas."""
        earlier = self.gradients.get(name)
        self.gradients[name] = rows.clone() if earlier is None else earlier.add_(rows)
        self.added[name] += 1

    def gather_gradients(self, name: str, homes: Tensor) -> Tensor:
        """The gradient of the homes here, with those of their replicas; all ranks together."""
        rows = self.gradients.pop(name)
        del self.added[name]
        rows = rows.reshape(len(rows), -1)[[r.slot for r in self.here]]
        homes_of_mine, holders = [r.home for r in self.here], [r.holder for r in self.elsewhere]
        arrived = self._exchange(rows, homes_of_mine, holders)
        total = homes.to(arrived.dtype, copy=True).reshape(len(homes), -1)
        places = torch.tensor([r.place for r in self.elsewhere], device=total.device)
        return total.index_add_(0, places.long(), arrived).view(homes.shape)


class ExpertReplicas:
    """Replicas of the experts of a program's layers on this rank; `layers` by path, of all stages."""

    def __init__(self, table: ProgramTable, groups: MeshGroups) -> None:
        self.spare, self.moves = table.expert_slots, 0
        self.layers: dict[str, ExpertLayer] = {}
        self.layer_of: dict[str, ExpertLayer] = {}
        specs = {name: spec for spec in table.state_tensors for name in spec.names()}
        for path, names in (expert_layers(table) if self.spare else {}).items():
            spec = specs[names[0]]
            axes = table.meshes[spec.mesh].axes
            number = expert_axis(spec.layout, table.meshes[spec.mesh])
            assert number is not None
            role, ranks = axes[number].name, axes[number].size
            placement = at_home(spec.type.shape[0], ranks, self.spare)
            self.put(path, ExpertLayer(names, groups.roles[spec.mesh][role], role, placement))

    def put(self, path: str, layer: ExpertLayer) -> None:
        self.layers[path] = layer
        self.layer_of.update(dict.fromkeys(layer.names, layer))

    def share(self, other: ExpertReplicas, names: Iterable[str]) -> None:
        """Take over the layers of another program all of whose weights are among `names`."""
        shared = set(names)
        for path, layer in other.layers.items():
            if shared.issuperset(layer.names):
                self.put(path, layer)

    def slots_of(self, names: Sequence[str], device: torch.device) -> ExpertSlots | None:
        """The slots of the experts of a call that reads these tensors."""
        layers = (self.layer_of[name] for name in names if name in self.layer_of)
        layer = next(layers, None)
        return None if layer is None else layer.slots_on(device)

    def with_room(self, parameter: LocalParameter) -> None:
        """Give a weight slots for replicas, in one tensor with its values where these are not sharded
        further."""
        layer = self.layer_of.get(parameter.name)
        if layer is None:
            return
        shape, sharding, flat = parameter.shape, parameter.sharding, parameter.memory
        rows = (self.spare, *shape[1:])
        if sharding.degrees[0] > 1 or sharding.padded_elements != sharding.elements:
            layer.tails[parameter.name] = flat.new_zeros(rows)
            return
        room = flat.new_zeros(flat.numel() + prod(rows))
        room[: flat.numel()] = flat
        layer.wholes[parameter.name] = room.view(-1, *shape[1:])
        layer.tails[parameter.name] = room[flat.numel() :].view(rows)
        parameter.memory = room[: flat.numel()]

    def with_replicas(self, parameter: LocalParameter, local: Tensor) -> Tensor:
        """The experts of a weight in the slots of this rank, given those at home."""
        layer = self.layer_of.get(parameter.name)
        if layer is None:
            return local
        if parameter.name in layer.outdated:
            layer.refresh(parameter.name, local)
        whole = layer.wholes.get(parameter.name)
        return torch.cat((local, layer.tails[parameter.name])) if whole is None else whole

    def at_home(
        self,
        parameter: LocalParameter,
        gradient: Tensor,
        dtype: torch.dtype,
        expected: Mapping[str, int],
    ) -> Tensor:
        """The gradient of the experts at home, given that of all slots. The last of the `expected` ones
        of a step has those of replicas, which are summed in a `dtype`."""
        name, layer = parameter.name, self.layer_of.get(parameter.name)
        if layer is None:
            return gradient
        homes, rows = gradient[: layer.homes], gradient[layer.homes :]
        if not layer.placement.has_replicas:
            return homes
        layer.add(name, rows.to(dtype))
        return homes if layer.added[name] < expected[name] else layer.gather_gradients(name, homes)

    def expire(self) -> None:
        """Values of all homes have changed."""
        for layer in self.layers.values():
            layer.expire()

    def clear(self) -> None:
        """Drop gradients that have not gone home."""
        for layer in self.layers.values():
            layer.gradients.clear()
            layer.added.clear()


def expert_layers(table: ProgramTable) -> dict[str, tuple[str, ...]]:
    """By path, the weights of layers of which ranks have different experts."""
    specs = {name: spec for spec in table.state_tensors for name in spec.names()}
    layers: dict[str, tuple[str, ...]] = {}
    for run in table.calls:
        for call in range(run.first, run.last):
            names = (run.name(pattern, call) for pattern in run.state_tensors)
            split = tuple(
                name
                for name in names
                if specs[name].kind == "parameter"
                and expert_axis(specs[name].layout, table.meshes[specs[name].mesh]) is not None
            )
            if split:
                path = run.name(run.path, call)
                layers[path] = layers.get(path, ()) + split
    return layers
