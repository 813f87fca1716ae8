"""Collectives along mesh axes and operators of shards; generated code calls them as `comm`.

The mesh has two more axes: `micro`, the current micro-batch, and `split`, the current chunk of a call.
Values can be sliced and scaled over them as over any axis; results of chunks are added up or inserted
one after the other. Results are new and contiguous, inputs are not changed. `dim` and `outer` name the
factor of a dimension that is sharded: see `slicing`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...ir.model.mesh import CHUNK, MICRO, Mesh
from .group_hierarchy import GroupHierarchy, NodeRoute, RowRoute
from .process_group import Group
from .sharded_operators import ShardedOperators
from .slicing import insert_slice, join, split, take_slice
from .transfer import Arrived, Started


class AllReduce(Protocol):
    """A sum over the ranks of an axis that is sent in another way, such as compressed."""

    def all_reduce(self, x: Tensor) -> Tensor: ...


class ShardingMove(NamedTuple):
    """A sharding that goes from one factor to another."""

    from_dim: int
    from_outer: int = 1
    to_dim: int = 0
    to_outer: int = 1

    def counted(self, degree: int) -> ShardingMove:
        """With both `outer` counted in one shard. Of two factors of one dimension, the outer one is
        sharded where the other's was counted."""
        if self.from_dim != self.to_dim:
            return self
        if self.from_outer < self.to_outer:
            return self._replace(to_outer=self.to_outer // degree)
        return self._replace(from_outer=self.from_outer // degree)


class Comm(ShardedOperators):
    """Collectives of one rank.

    `sent_bytes` counts bytes sent by kind of collective (ring algorithms); `compressed` are the
    compressed all-reduces by axis; on `device` operators without operands make their tensors. Rows
    travel level by level along axes that have `levels`.
    """

    levels: Mapping[str, GroupHierarchy] = MappingProxyType({})

    def __init__(
        self,
        mesh: Mesh,
        micro_batches: int,
        rank: int,
        groups: Mapping[str, Group],
        sent_bytes: Counter[str] | None = None,
        compressed: Mapping[str, AllReduce] | None = None,
        device: torch.device | None = None,
    ) -> None:
        names = [axis.name for axis in mesh.axes]
        self.groups = groups
        self.sizes = {axis.name: axis.size for axis in mesh.axes} | {MICRO: micro_batches}
        self.coordinates = dict(zip(names, mesh.coordinate(rank), strict=True)) | {MICRO: 0}
        self.sent_bytes: Counter[str] = Counter() if sent_bytes is None else sent_bytes
        self.compressed = compressed or {}
        self.counted_call: int | None = None  # in whose forward choices of experts are counted
        self.choices: dict[int, Tensor] = {}  # by call, how often its experts were chosen
        self.device = device or torch.device("cpu")

    def micro_batch(self, number: int) -> None:
        """Select the micro-batch that `micro` slices refer to."""
        self.coordinates[MICRO] = number

    def chunks(self, degree: int) -> Iterator[int]:
        """Iterate over the chunks of a call, selecting each for `split` slices in turn."""
        self.sizes[CHUNK] = degree
        for number in range(degree):
            self.coordinates[CHUNK] = number
            yield number

    def add(self, total: Tensor | None, term: Tensor) -> Tensor:
        """`total` with one more term added in place; a copy of the first term."""
        return term.clone() if total is None else total.add_(term)

    def insert_slice(
        self, full: Tensor | None, shard: Tensor, axis: str, dim: int, outer: int = 1
    ) -> Tensor:
        """`full` with the current slice written to its place: the inverse of `slice`."""
        degree = self.sizes[axis]
        if full is None:
            shape = [n * degree if d == dim else n for d, n in enumerate(shard.shape)]
            full = shard.new_empty(shape)
        insert_slice(full, shard, degree, self.coordinates[axis], dim, outer)
        return full

    def part(self, x: Tensor, index: int, of: int, dim: int, outer: int = 1) -> Tensor:
        """One `of` so many equal parts of `x`, which every one of `outer` elements of `dim` has."""
        return take_slice(x, of, index, dim, outer)

    def place(
        self, full: Tensor | None, part: Tensor, index: int, of: int, dim: int, outer: int = 1
    ) -> Tensor:
        """`full`, or a new tensor of its shape, with a part written to its place; undoes `part`."""
        if full is None:
            full = part.new_empty([n * of if d == dim else n for d, n in enumerate(part.shape)])
        insert_slice(full, part, of, index, dim, outer)
        return full

    def start(self, kind: str, x: Tensor, axis: str, **where: int) -> Started:
        """Start a collective, which runs beside what follows until it is awaited."""
        if self.sizes[axis] == 1:
            return Arrived(x)
        started: Started = getattr(self, f"_start_{kind}")(x, axis, **where)
        return started

    def wait(self, started: Started) -> Tensor:
        """What a started collective gives."""
        return started.wait()

    def _start_all_reduce(self, x: Tensor, axis: str) -> Started:
        if axis in self.compressed:
            return Arrived(self.compressed[axis].all_reduce(x))
        return self.groups[axis].start_all_reduce(x)

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """Sum of every rank's `x`."""
        return self.start("all_reduce", x, axis).wait()

    def _start_all_gather(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Started:
        return self.groups[axis].start_all_gather(x).then(lambda rows: join(rows, dim, outer))

    def all_gather(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """The full value of which every rank has a shard."""
        return self.start("all_gather", x, axis, dim=dim, outer=outer).wait()

    def _start_reduce_scatter(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Started:
        return self.groups[axis].start_reduce_scatter(split(x, self.sizes[axis], dim, outer))

    def reduce_scatter(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """This rank's shard of the sum of every rank's `x`."""
        return self.start("reduce_scatter", x, axis, dim=dim, outer=outer).wait()

    def _start_all_to_all(self, x: Tensor, axis: str, **where: int) -> Started:
        move = ShardingMove(**where).counted(self.sizes[axis])
        rows = split(x, self.sizes[axis], move.to_dim, move.to_outer)
        started = self.groups[axis].start_all_to_all(rows)
        return started.then(lambda received: join(received, move.from_dim, move.from_outer))

    def all_to_all(
        self,
        x: Tensor,
        axis: str,
        from_dim: int,
        from_outer: int = 1,
        to_dim: int = 0,
        to_outer: int = 1,
    ) -> Tensor:
        """Move the sharding from one factor to another; `from_outer` counts before, `to_outer` after."""
        move = ShardingMove(from_dim, from_outer, to_dim, to_outer)
        return self.start("all_to_all", x, axis, **move._asdict()).wait()

    def slice(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """The slice of a replicated value at this rank (or micro-batch, or chunk)."""
        return take_slice(x, self.sizes[axis], self.coordinates[axis], dim, outer)

    def scale(self, x: Tensor, axis: str) -> Tensor:
        """`x` divided by the size of the axis: a partial value whose sum over the axis is `x`."""
        return x if self.sizes[axis] == 1 else x / self.sizes[axis]

    def sum_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Sum of every rank's `x` over several axes."""
        for axis in axes:
            x = self.groups[axis].all_reduce(x)
        return x

    def max_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Maximum of every rank's `x` over several axes."""
        for axis in axes:
            x = self.groups[axis].all_reduce(x, largest=True)
        return x

    def note_choices(self, choice: Tensor, experts: int) -> None:
        if self.counted_call is not None:
            counts = torch.bincount(choice.reshape(-1), minlength=experts)
            earlier = self.choices.get(self.counted_call)
            self.choices[self.counted_call] = counts if earlier is None else earlier + counts

    def row_route(self, axis: str, counts: Tensor) -> RowRoute:
        if axis in self.levels:
            return NodeRoute(self.levels[axis], counts)
        return super().row_route(axis, counts)

    def exchange_rows(self, x: Tensor, axis: str, sent: list[int], received: list[int]) -> Tensor:
        return self.groups[axis].exchange_rows(x, sent, received)
