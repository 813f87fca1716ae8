"""A rank's share of the model's tensors: values, gradients, and what the optimizer steps on.

A tensor is first cut as its layout says (over `tp`). The local piece is then cut flat, in three
nested levels, each possibly of one rank:

    local piece, flat, padded     N
    value kept                    N / zero3                 gathered before each use
    gradient accumulated          N / zero3 / zero2         reduce-scattered after each backward
    optimizer steps on            N / zero3 / zero2 / zero1 reduce-scattered at the step's end

Where a fraction of it is cut over zero3, what is kept is this rank's piece of that and all of the rest,
whose gradient is added up over zero3 at the step's end.

Gradients are sums over micro-batches and over the axes that split data, never averages: the loss is
normalised over the whole batch already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.compression.program import Subject
from ...ir.layout import along
from ...ir.plan.flat_shard import Flat
from ...ir.plan.strategy import LEVELS
from ...ir.program import Held, Table
from ..comm import buckets
from ..comm.mesh_collectives import Comm
from ..comm.process_group import Group
from ..comm.program_groups import MeshGroups
from ..comm.slicing import flatten, piece
from ..comm.transport import Wire, Wires
from ..compression.optimizers.flat import FlatOptimizer
from .initialization import Initial

Levels = tuple[Group, ...]


@dataclass
class Kept:
    """One tensor on this rank: `flat` stays in memory, `leaf` is the optimizer's view of it."""

    name: str
    held: Held
    shape: tuple[int, ...]
    cut: Flat
    flat: Tensor
    leaf: torch.nn.Parameter | None = None
    gradient: Tensor | None = None
    owned: bool = False

    @property
    def ways(self) -> tuple[int, int, int]:
        return self.cut.ways

    @property
    def total_ways(self) -> int:
        return self.ways[0] * self.ways[1] * self.ways[2]

    @property
    def own(self) -> Tensor:
        """Of the value kept, this rank's piece of what is cut over zero3."""
        return self.flat[: self.cut.piece] if self.cut.split else self.flat

    def with_rest(self, sharded: Tensor) -> Tensor:
        """All elements from those that are cut over zero3."""
        if not self.cut.split:
            return sharded
        return torch.cat((sharded, self.flat[self.cut.piece :]))

    def whole(self, flat: Tensor) -> Tensor:
        """The local piece from its padded flat form."""
        return flat[: self.cut.elements].view(self.shape)


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
        cut = Flat(local.numel(), ways, held.fraction)
        flat = shard(levels, flatten(local, cut.length), cut, 1)
        kept = Kept(name, held, tuple(local.shape), cut, flat.to(self.device, copy=True))
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
        return pieces(self.levels[kept.held.mesh], kept.flat, kept.cut, 3)

    # using

    def fetch(self, names: list[str]) -> list[Tensor]:
        """Local pieces for one call; those cut over zero3 are gathered, and freed by their user."""
        kept = [self.kept[name] for name in names]
        cut = list({k.name: k for k in kept if k.ways[0] > 1 and k.cut.piece}.values())
        flats = [k.own for k in cut]
        if cut:
            flats = self.wire("weights", cut, 0).all_gather(flats, _names(cut))
        flats.reverse()  # so that each is let go of when it is part of a whole
        gathered = {k.name: k.whole(k.with_rest(flats.pop())) for k in cut}
        return [gathered[k.name] if k.name in gathered else k.whole(k.flat) for k in kept]

    def accumulate(self, gradients: list[tuple[str, Tensor]]) -> None:
        """Add the gradients that one backward call made; the list is taken over."""
        found, flats = list[Kept](), list[Tensor]()
        for kept, gradient in self.taken(gradients):
            found.append(kept)
            flats.append(flatten(gradient, kept.cut.length))
            del gradient  # what is flat may be a copy
        if found:
            flats = scattered(self.wire("gradients", found, 0), found, flats)
            flats = self.wire("gradients", found, 1).reduce_scatter(flats, _names(found))
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
        found: dict[str, Tensor] = {}
        for _, members in self.by_mesh(ready):
            wire, names = self.wire("gradients", members, 2), _names(members)
            found.update(_named(names, wire.reduce_scatter([_taken(k) for k in members], names)))
        for key, group in self.groups.sums.items():
            names = [kept.name for kept in ready if (kept.held.mesh, kept.held.sums) == key]
            mesh, axes = key
            wire = self.wires.wire("gradients", mesh, "+".join(axes), group)
            found.update(_named(names, wire.all_reduce([found.pop(n) for n in names], names)))
        for mesh, members in self.by_mesh(k for k in ready if k.cut.split):
            self.sum_rests(self.levels[mesh], [(k, found[k.name]) for k in members])
        for kept in ready:
            assert kept.leaf is not None
            kept.leaf.grad = found[kept.name].view(kept.leaf.shape)

    def sum_rests(self, levels: Levels, gradients: Sequence[tuple[Kept, Tensor]]) -> None:
        """Add up over zero3, in place, what is not cut over it. Last of all sums, so that its ranks
        step alike to the bit."""
        rests = [self.rest(levels, kept, gradient) for kept, gradient in gradients]
        rests = [rest for rest in rests if rest.numel()]
        for members in buckets.buckets(rests):
            totals = buckets.all_reduce(levels[0], [rests[i] for i in members])
            for i, total in zip(members, totals, strict=True):
                rests[i].copy_(total)

    def rest(self, levels: Levels, kept: Kept, flat: Tensor) -> Tensor:
        """Of an optimizer piece what is not cut over zero3."""
        first = levels[1].index * kept.ways[2] + levels[2].index
        return flat[max(kept.cut.piece - first * flat.numel(), 0) :]

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
        outer, *inner = list(zip(self.levels[kept.held.mesh], kept.ways, strict=True))[:cuts]
        for level, size in reversed(inner):
            if size > 1:
                flat = level.all_gather(flat.contiguous()).reshape(-1)
        if outer[1] > 1 and kept.cut.piece:
            own, rest = flat[: kept.cut.piece], flat[kept.cut.piece :]
            flat = torch.cat((outer[0].all_gather(own.contiguous()).reshape(-1), rest))
        return self.assemble(kept, kept.whole(flat))

    def gather_value(self, kept: Kept) -> Tensor:
        if kept.leaf is not None and self.leader is not None:
            return self.gather(kept, self.leader.agreed(kept.leaf))
        if kept.leaf is not None and self.wires.rounds_weights(kept.held.mesh):
            return self.gather(kept, kept.leaf)
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
        flat = flatten(self.local(kept.held, whole), kept.cut.length)
        return shard(self.levels[kept.held.mesh], flat, kept.cut, cuts).to(self.device, copy=True)

    def put(self, name: str, whole: Tensor) -> None:
        """Replace a tensor's value by a whole one."""
        kept = self.kept[name]
        kept.flat.copy_(self.cut(kept, whole.to(kept.flat.dtype), 1))
        if kept.leaf is not None and self.wires.rounds_weights(kept.held.mesh):
            kept.leaf.data.copy_(self.leaf_view(kept))


def shard(levels: Levels, flat: Tensor, cut: Flat, count: int) -> Tensor:
    """This rank's piece of a padded flat tensor after the first `count` cuts."""
    if count and cut.ways[0] > 1 and cut.piece:
        own = flat[: cut.sharded].view(cut.ways[0], -1)[levels[0].index]
        flat = torch.cat((own, flat[cut.sharded :])) if cut.split else own
    return pieces(levels, flat, cut, count)


def pieces(levels: Levels, flat: Tensor, cut: Flat, count: int) -> Tensor:
    """This rank's piece, after so many cuts, of what is kept after the first."""
    for level, size in list(zip(levels, cut.ways, strict=True))[1:count]:
        if size > 1:
            flat = flat.view(size, -1)[level.index]
    return flat


def scattered(wire: Wire, kept: Sequence[Kept], flats: list[Tensor]) -> list[Tensor]:
    """Flat gradients as far as they are cut over zero3: this rank's pieces of the sums, then the rest
    of its own as it is. The list is taken over."""
    if not any(k.cut.split for k in kept):
        return wire.reduce_scatter(flats, _names(kept))
    cut = [i for i, k in enumerate(kept) if k.cut.piece]
    own = [flats[i][: kept[i].cut.sharded] for i in cut]
    for i, k in enumerate(kept):
        flats[i] = flats[i][k.cut.sharded :] if k.cut.split else flats[i].new_empty(0)
    own = wire.reduce_scatter(own, _names([kept[i] for i in cut]))
    summed = dict(zip(cut, own, strict=True))
    for i, rest in enumerate(flats):
        flats[i] = torch.cat((summed[i], rest)) if i in summed else rest.clone()
    return flats


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
