"""One tensor on this rank, flat and sharded over zero3, zero2 and zero1; see `parameters`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ...ir.plan.flat_shard import FlatShard
from ...ir.plan.program import ParameterSpec
from ..comm.buckets import Arrival, Transport
from ..comm.process_group import Group

FlatShardGroups = tuple[Group, ...]  # zero3, zero2, zero1: outermost first


@dataclass
class LocalParameter:
    """One tensor on this rank: `flat` stays in memory, `leaf` is the optimizer's view of it, or where it
    `has_master` a more exact copy. `arriving` completes `memory`; stores that share it share both."""

    name: str
    spec: ParameterSpec
    shape: tuple[int, ...]
    sharding: FlatShard
    memory: Tensor
    leaf: torch.nn.Parameter | None = None
    gradient: Tensor | None = None
    owns_gradient: bool = False
    stepped_whole: bool = False  # by one rank of those that shard it
    has_master: bool = False
    arriving: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    @property
    def flat(self) -> Tensor:
        """The flat tensor, once all of it has arrived."""
        while self.arriving:
            self.arriving[0]()
        return self.memory

    @property
    def total_degree(self) -> int:
        """Ranks that shard the flat tensor in all."""
        return prod(self.sharding.degrees)

    @property
    def zero3_shard(self) -> Tensor:
        """The part of `flat` that is sharded over zero3, without the remainder."""
        return (
            self.flat[: self.sharding.shard_elements]
            if self.sharding.partially_sharded
            else self.flat
        )

    def with_remainder(self, sharded: Tensor) -> Tensor:
        """The gathered zero3 shards with the unsharded remainder appended: all elements, padded."""
        if not self.sharding.partially_sharded:
            return sharded
        return torch.cat((sharded, self.flat[self.sharding.shard_elements :]))

    def unpadded(self, flat: Tensor) -> Tensor:
        """The local shard, in its shape, from its padded flat form."""
        elements = self.sharding.elements
        return (flat if flat.numel() == elements else flat[:elements]).view(self.shape)

    def pop_gradient(self) -> Tensor:
        """Take the accumulated gradient away from the parameter."""
        gradient, self.gradient = self.gradient, None
        assert gradient is not None
        return gradient


def names_of(parameters: Sequence[LocalParameter]) -> list[str]:
    return [parameter.name for parameter in parameters]


def shard(groups: FlatShardGroups, flat: Tensor, sharding: FlatShard, levels: int) -> Tensor:
    """This rank's shard of a padded flat tensor after the first `levels` levels."""
    if levels and sharding.degrees[0] > 1 and sharding.shard_elements:
        rows = flat[: sharding.sharded_elements].view(sharding.degrees[0], -1)
        row, remainder = rows[groups[0].index], flat[sharding.sharded_elements :]
        flat = torch.cat((row, remainder)) if sharding.partially_sharded else row
    return inner_shard(groups, flat, sharding, levels)


def inner_shard(groups: FlatShardGroups, flat: Tensor, sharding: FlatShard, levels: int) -> Tensor:
    """This rank's shard after the first `levels` levels, of a tensor already sharded over zero3."""
    for group, size in list(zip(groups, sharding.degrees, strict=True))[1:levels]:
        if size > 1:
            flat = flat.view(size, -1)[group.index]
    return flat


def start_zero3_reduction(
    transport: Transport, parameters: Sequence[LocalParameter], flats: list[Tensor]
) -> Arrival:
    """Start to reduce-scatter flat gradients over zero3 as far as their parameters are sharded over it.

    Gives per parameter this rank's shard of the sum, then the remainder of its own gradient, not yet
    summed. Empties the list.
    """
    if not any(p.sharding.partially_sharded for p in parameters):
        return transport.start_reduce_scatter(flats, names_of(parameters))
    sharded = [i for i, p in enumerate(parameters) if p.sharding.shard_elements]
    shards = [flats[i][: parameters[i].sharding.sharded_elements] for i in sharded]
    remainders = [
        flat[p.sharding.sharded_elements :].clone()
        if p.sharding.partially_sharded
        else flat.new_empty(0)
        for p, flat in zip(parameters, flats, strict=True)
    ]
    flats.clear()
    arrival = transport.start_reduce_scatter(shards, names_of([parameters[i] for i in sharded]))

    def wait() -> list[Tensor]:
        reduced = dict(zip(sharded, arrival(), strict=True))
        return [
            torch.cat((reduced[i], remainder)) if i in reduced else remainder
            for i, remainder in enumerate(remainders)
        ]

    return wait
