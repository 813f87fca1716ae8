"""Collectives over many tensors at once: small ones share a bucket, large ones go alone.

Reductions empty the list that they are given: each tensor is freed once it is in a bucket, so that
beside all tensors only one bucket is in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...ir.plan.program import BUCKET_BYTES
from .process_group import Group
from .transfer import Started

Arrival = Callable[[], list[Tensor]]  # waits for what is on its way; once
Names = Sequence[str]


class StartedBucket(NamedTuple):
    """Tensors that travel together: their positions in a list, their sizes in elements, and the way."""

    members: list[int]
    sizes: list[int]
    transfer: Started


def buckets(tensors: Sequence[Tensor], limit_bytes: float = BUCKET_BYTES) -> list[list[int]]:
    """Positions of the tensors of each bucket: one element type, at most `limit_bytes`."""
    groups: list[list[int]] = []
    open_groups: dict[torch.dtype, tuple[list[int], int]] = {}
    for position, tensor in enumerate(tensors):
        size = tensor.numel() * tensor.element_size()
        members, total = open_groups.get(tensor.dtype, ([], 0))
        if members and total + size <= limit_bytes:
            members.append(position)
            open_groups[tensor.dtype] = (members, total + size)
        else:
            groups.append([position])
            open_groups[tensor.dtype] = (groups[-1], size)
    return groups


def all_reduce(group: Group, tensors: list[Tensor]) -> list[Tensor]:
    """Sums over the ranks, each in the shape of its tensor. Empties the list."""
    if group.size == 1:
        return tensors
    for members in buckets(tensors):
        shapes = [tensors[i].shape for i in members]
        alone = len(members) == 1  # a bucket of several tensors is a copy already
        total = group.all_reduce(pop_joined(tensors, members), in_place=not alone)
        parts = total.view(-1).split([shape.numel() for shape in shapes])
        for i, part, shape in zip(members, parts, shapes, strict=True):
            tensors[i] = part.view(shape)
    return tensors


def start_reduce_scatter(group: Group, flats: list[Tensor]) -> Arrival:
    """Start `reduce_scatter`, all buckets at once. Empties the list."""
    if group.size == 1:
        arrived = list(flats)
        return lambda: arrived
    rows = [flat.view(group.size, -1) for flat in flats]
    flats.clear()
    return partial(_scattered, rows, list(_scatters(group, rows)))


def reduce_scatter(group: Group, flats: list[Tensor]) -> list[Tensor]:
    """This rank's `1 / size` of the sum of every flat tensor, bucket by bucket. Empties the list."""
    if group.size == 1:
        return flats
    flats[:] = [flat.view(group.size, -1) for flat in flats]
    return _scattered(flats, _scatters(group, flats))


def _scatters(group: Group, rows: list[Tensor]) -> Iterator[StartedBucket]:
    """Start to reduce-scatter buckets one by one, of which each is taken out of `rows`."""
    for members in buckets(rows):
        sizes = [rows[i].shape[1] for i in members]
        yield StartedBucket(
            members, sizes, group.start_reduce_scatter(pop_joined(rows, members, 1))
        )


def _scattered(rows: list[Tensor], started: Iterable[StartedBucket]) -> list[Tensor]:
    """Put the parts of buckets into `rows` as they arrive."""
    for bucket in started:
        parts = bucket.transfer.wait().split(bucket.sizes)
        for i, part in zip(bucket.members, parts, strict=True):
            rows[i] = part
    return rows


def start_all_gather(group: Group, flats: Sequence[Tensor]) -> Arrival:
    """Start `all_gather`, all buckets at once."""
    if group.size == 1:
        arrived = list(flats)
        return lambda: arrived
    return partial(_gathered, len(flats), _drained(deque(_gathers(group, flats))))


def all_gather(group: Group, flats: Sequence[Tensor]) -> list[Tensor]:
    """Gathered flat tensors, of which each given one is this rank's `1 / size`, bucket by bucket."""
    if group.size == 1:
        return list(flats)
    return _gathered(len(flats), _gathers(group, flats))


def _gathers(group: Group, flats: Sequence[Tensor]) -> Iterator[StartedBucket]:
    """Start to gather buckets one by one."""
    for members in buckets(flats):
        sizes = [flats[i].numel() for i in members]
        yield StartedBucket(
            members, sizes, group.start_all_gather(joined([flats[i] for i in members]))
        )


def _gathered(count: int, started: Iterator[StartedBucket]) -> list[Tensor]:
    """The gathered tensors in order; each bucket is freed once its tensors are copied out of it."""
    gathered: dict[int, Tensor] = {}
    for bucket in started:
        parts = bucket.transfer.wait().split(bucket.sizes, dim=1)
        gathered.update((i, p.reshape(-1)) for i, p in zip(bucket.members, parts, strict=True))
        del bucket, parts
    return [gathered[i] for i in range(count)]


def _drained(started: deque[StartedBucket]) -> Iterator[StartedBucket]:
    """What was started, each forgotten once it is taken."""
    while started:
        yield started.popleft()


def joined(tensors: Sequence[Tensor], start: int = 0) -> Tensor:
    """Tensors concatenated along dimension `start`; a single one is returned itself, not a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=start)


def pop_joined(tensors: list[Tensor], members: list[int], start: int = 0) -> Tensor:
    """Remove the tensors of a bucket from the list and join them, flattened after `start` dimensions."""
    values = [tensors[i].flatten(start) if len(members) > 1 else tensors[i] for i in members]
    for i in members:
        tensors[i] = values[0].new_empty(0)
    return joined(values, start)


class Transport(Protocol):
    """Collectives over many flat tensors along one axis.

    Reductions empty their lists. `names` identify the tensors for states such as error feedback.
    What is started runs beside what follows, where it is not compressed.
    """

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]: ...
    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]: ...
    def all_gather(self, shards: Sequence[Tensor], names: Names) -> list[Tensor]: ...
    def start_reduce_scatter(self, flats: list[Tensor], names: Names) -> Arrival: ...
    def start_all_gather(self, shards: Sequence[Tensor], names: Names) -> Arrival: ...


class PlainTransport:
    """Collectives of uncompressed tensors, in"""

    def __init__(self, group: Group) -> None:
        self.group = group

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]:
        return all_reduce(self.group, tensors)

    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]:
        return reduce_scatter(self.group, flats)

    def all_gather(self, shards: Sequence[Tensor], names: Names) -> list[Tensor]:
        return all_gather(self.group, shards)

    def start_reduce_scatter(self, flats: list[Tensor], names: Names) -> Arrival:
        return start_reduce_scatter(self.group, flats)

    def start_all_gather(self, shards: Sequence[Tensor], names: Names) -> Arrival:
        return start_all_gather(self.group, shards)
