"""A rank's share of the model's tensors: values, gradients, and what the optimizer steps on.

A tensor is first cut as its layout says (over `tp`). The local piece is then cut flat, in three
nested levels, each possibly of one rank:

    local piece, flat, padded     N
    value kept                    N / zero3                 gathered before each use
    gradient accumulated          N / zero3 / zero2         reduce-scattered after each backward
    optimizer steps on            N / zero3 / zero2 / zero1 reduce-scattered at the step's end

Gradients are sums over micro-batches and over the axes that split data, never averages: the loss is
normalised over the whole batch already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ir.compression.program import Subject
from ..ir.layout import along
from ..ir.program import Held, Table
from ..ir.strategy import LEVELS
from . import buckets
from .comm import Comm
from .compression.optimizers.flat import FlatOptimizer
from .group import Group
from .initial import Initial
from .mesh_groups import MeshGroups
from .shard import flatten, piece
from .wires import Wire, Wires

Levels = tuple[Group, ...]


@dataclass
class Kept:
    """One tensor on this rank: `flat` stays in memory, `leaf` is the optimizer's view of it."""

    name: str
    held: Held
    shape: tuple[int, ...]
    ways: tuple[int, int, int]
    flat: Tensor
    leaf: torch.nn.Parameter | None = None
    gradient: Tensor | None = None
    owned: bool = False

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def total_ways(self) -> int:
        return self.ways[0] * self.ways[1] * self.ways[2]

    def whole(self, flat: Tensor) -> Tensor:
        """The local piece from its padded flat form."""
        return flat[: self.elements].view(self.shape)


class Store:
    """All tensors that this rank's stage holds, by name."""

    def __init__(
        self,
        table: Table,
        groups: MeshGroups,
        comms: Sequence[Comm],
        initial: Initial,
        device: torch.device,
        wires: Wires,
    ) -> None:
        self.table, self.groups, self.comms, self.device = table, groups, comms, device
        self.wires = wires
        self.leader: FlatOptimizer | None = None  # to which sums are left, if any
        self.levels: tuple[Levels, ...] = tuple(
            tuple(roles[level] for level in LEVELS) for roles in groups.roles
        )
        self.everything = {name: held for held in table.held for name in held.names()}
        self.kept = {
            name: self.keep(name, held, initial)
            for name, held in self.everything.items()
            if groups.stage in held.stages
        }

    # placing

    def keep(self, name: str, held: Held, initial: Initial) -> Kept:
        """Cut this rank's piece out of the whole tensor."""
        levels = self.levels[held.mesh]
        p, g, o = (level.size for level in levels)
        ways = (p if held.kind == "parameter" else 1, 1, 1)
        if held.kind == "parameter" and held.trainable:
            ways = (p, g, o)
        local = self.local(held, initial.value(name, held))
        shape = tuple(local.shape)
        flat = shard(levels, flatten(local, ways[0] * ways[1] * ways[2]), ways, 1)
        kept = Kept(name, held, shape, ways, flat.to(self.device, copy=True))
        if held.kind == "parameter" and held.trainable:
            kept.leaf = torch.nn.Parameter(self.leaf_view(kept))
            if kept.total_ways > 1 and self.wires.rounds_weights(held.mesh):
                kept.leaf.data = kept.leaf.data.clone()  # exact, beside what the others see
        return kept

    def local(self, held: Held, whole: Tensor) -> Tensor:
        mesh = self.table.meshes[held.mesh]
        return piece(whole, held.factors, held.layout, mesh, mesh.coordinate(self.groups.rank))

    def leaf_view(self, kept: Kept) -> Tensor:
        if kept.total_ways == 1:
            return kept.whole(kept.flat)
        return shard(self.levels[kept.held.mesh], kept.flat, (1, *kept.ways[1:]), 3)

    # using

    def fetch(self, names: list[str]) -> list[Tensor]:
        """Local pieces for one call; those cut over zero3 are gathered, and freed by their user."""
        kept = [self.kept[name] for name in names]
        cut = list({k.name: k for k in kept if k.ways[0] > 1}.values())
        flats = [k.flat for k in cut]
        if cut:
            flats = self.wire("weights", cut, 0).all_gather(flats, _names(cut))
        gathered = {k.name: k.whole(flat) for k, flat in zip(cut, flats, strict=True)}
        return [gathered[k.name] if k.name in gathered else k.whole(k.flat) for k in kept]

    def accumulate(self, gradients: list[tuple[str, Tensor]]) -> None:
        """Add the gradients that one backward call made; the list is taken over."""
        found, flats = list[Kept](), list[Tensor]()
        for kept, gradient in self.taken(gradients):
            found.append(kept)
            flats.append(flatten(gradient, kept.total_ways))
            del gradient  # what is flat may be a copy
        for cut in (0, 1) if found else ():
            flats = self.wire("gradients", found, cut).reduce_scatter(flats, _names(found))
        for kept, flat in zip(found, flats, strict=True):
            if kept.gradient is None:
                kept.gradient, kept.owned = flat, False
            elif kept.owned:
                kept.gradient += flat
            else:
                # The first tensor may be somebody else's memory as well: do not write into it.
                kept.gradient, kept.owned = kept.gradient + flat, True

    def taken(self, gradients: list[tuple[str, Tensor]]) -> Iterator[tuple[Kept, Tensor]]:
        """Gradients of what is trained, one by one, which the list no longer holds."""
        gradients.reverse()
        while gradients:
            kept = self.kept[gradients[-1][0]]
            if kept.leaf is not None:
                yield kept, gradients.pop()[1]
            else:
                gradients.pop()

    def wire(self, subject: Subject, kept: Iterable[Kept], cut: int) -> Wire:
        """The way of tensors of one mesh over the ranks of their flat cut of this number."""
        numbers = {one.held.mesh for one in kept}
        assert len(numbers) == 1, f"tensors of meshes {numbers} travel together"
        mesh = numbers.pop()
        return self.wires.wire(subject, mesh, LEVELS[cut], self.levels[mesh][cut])

    # once per step

    def synchronize(self) -> None:
        """Complete the sums: over zero1 ranks, over axes that left them, and over stages that share
        a tensor."""
        self.sum_tied()
        ready = [k for k in self.trained() if k.gradient is not None]
        pieces: dict[str, Tensor] = {}
        for _, members in self.by_mesh(ready):
            wire, names = self.wire("gradients", members, 2), _names(members)
            pieces.update(_named(names, wire.reduce_scatter([_taken(k) for k in members], names)))
        for key, group in self.groups.sums.items():
            names = [kept.name for kept in ready if (kept.held.mesh, kept.held.sums) == key]
            mesh, axes = key
            wire = self.wires.wire("gradients", mesh, "+".join(axes), group)
            pieces.update(_named(names, wire.all_reduce([pieces.pop(n) for n in names], names)))
        for kept in ready:
            assert kept.leaf is not None
            kept.leaf.grad = pieces[kept.name].view(kept.leaf.shape)

    def sum_tied(self) -> None:
        """Tensors that several stages hold: their gradients belong together."""
        for stages, group in self.groups.tied.items():
            if group.size == 1 or self.groups.stage not in stages:
                continue
            tied = [k for k in self.trained() if k.held.stages == stages]
            flats = [_taken(k) if k.gradient is not None else self.zeros(k) for k in tied]
            for kept, total in zip(tied, buckets.all_reduce(group, flats), strict=True):
                kept.gradient = total

    def zeros(self, kept: Kept) -> Tensor:
        return kept.flat.new_zeros(kept.flat.numel() // kept.ways[1])

    def trained(self) -> list[Kept]:
        return [kept for kept in self.kept.values() if kept.leaf is not None]

    def publish(self) -> None:
        """After the optimizer's step: every rank gets the pieces that others stepped on."""
        moved = [k for k in self.trained() if k.leaf is not None and k.ways[1] * k.ways[2] > 1]
        for _, members in self.by_mesh(moved):
            flats = [k.leaf.detach() for k in members if k.leaf is not None]
            for cut in (2, 1):
                flats = self.wire("weights", members, cut).all_gather(flats, _names(members))
            for kept, flat in zip(members, flats, strict=True):
                kept.flat.copy_(flat)

    def by_mesh(self, kept: Iterable[Kept]) -> Iterator[tuple[int, list[Kept]]]:
        """Tensors by the number of their mesh: their flat pieces lie over the same groups."""
        found: dict[int, list[Kept]] = {}
        for one in kept:
            found.setdefault(one.held.mesh, []).append(one)
        yield from found.items()

    def zero_gradients(self) -> None:
        for kept in self.trained():
            kept.gradient = None
            assert kept.leaf is not None
            kept.leaf.grad = None

    def replace(self, updates: Mapping[str, Tensor]) -> None:
        """New values of buffers."""
        for name, value in updates.items():
            self.kept[name].flat.copy_(value.detach().reshape(-1))

    # whole tensors

    def gather(self, kept: Kept, leaf: Tensor, cuts: int = 3) -> Tensor:
        """The whole tensor of which every rank of the stage gives its piece after the first `cuts`
        flat cuts: after all, its optimizer piece."""
        flat = leaf.detach().reshape(-1)
        levels = self.levels[kept.held.mesh]
        for level, size in reversed(list(zip(levels, kept.ways, strict=True))[:cuts]):
            if size > 1:
                flat = level.all_gather(flat.contiguous()).reshape(-1)
        return self.assemble(kept, kept.whole(flat))

    def gather_value(self, kept: Kept) -> Tensor:
        exact = kept.leaf is not None and self.wires.rounds_weights(kept.held.mesh)
        if exact and kept.leaf is not None:
            return self.gather(kept, kept.leaf)
        if self.leader is not None and kept.leaf is not None:
            return self.gather(kept, self.leader.agreed(kept.leaf))
        return self.gather(kept, kept.flat, 1)

    def summed(self, kept: Kept) -> Tensor:
        """The gradient of a tensor's piece, also where its sum is left to the optimizer."""
        assert kept.leaf is not None
        assert kept.leaf.grad is not None
        gradient = kept.leaf.grad
        return gradient if self.leader is None else self.leader.levels.all.all_reduce(gradient)

    def assemble(self, kept: Kept, local: Tensor) -> Tensor:
        """Undo the cuts of the layout, innermost axis first."""
        layout, mesh = list(kept.held.layout), self.table.meshes[kept.held.mesh]
        for axis in reversed(range(len(layout))):
            state = layout[axis]
            if isinstance(state, tuple):
                dim, outer = along(kept.held.factors, tuple(layout), mesh, state)
                comm = self.comms[kept.held.mesh]
                local = comm.all_gather(local, mesh.axes[axis].name, dim, outer)
                layout[axis] = "R"
        return local

    def scatter(self, kept: Kept, whole: Tensor) -> Tensor:
        """This rank's optimizer piece of a whole tensor: the inverse of `gather`."""
        flat = self.cut(kept, whole)
        return flat.view(kept.leaf.shape) if kept.leaf is not None else flat

    def cut(self, kept: Kept, whole: Tensor, cuts: int = 3) -> Tensor:
        """This rank's flat piece of a whole tensor after the first `cuts` flat cuts."""
        flat = flatten(self.local(kept.held, whole), kept.total_ways)
        return shard(self.levels[kept.held.mesh], flat, kept.ways, cuts).to(self.device, copy=True)

    def put(self, name: str, whole: Tensor) -> None:
        """Replace a tensor's value by a whole one."""
        kept = self.kept[name]
        kept.flat.copy_(self.cut(kept, whole.to(kept.flat.dtype), 1))
        if kept.leaf is not None and self.wires.rounds_weights(kept.held.mesh):
            kept.leaf.data.copy_(self.leaf_view(kept))


def shard(levels: Levels, flat: Tensor, ways: tuple[int, int, int], count: int) -> Tensor:
    """This rank's piece of a padded flat tensor after the first `count` cuts."""
    for level, size in list(zip(levels, ways, strict=True))[:count]:
        if size > 1:
            flat = flat.view(size, -1)[level.index]
    return flat


def _taken(kept: Kept) -> Tensor:
    """The gradient of a tensor, which no longer holds it."""
    gradient, kept.gradient = kept.gradient, None
    assert gradient is not None
    return gradient


def _named(names: Sequence[str], tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, which nothing else holds."""
    return zip(names, tensors, strict=True)


def _names(kept: Sequence[Kept]) -> list[str]:
    return [one.name for one in kept]
