"""Collectives over many tensors at once: small ones share a bucket, large ones go alone.

Reductions empty the list that they are given: each tensor is freed once it is in a bucket, so that
beside all tensors only one bucket is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...ir.plan.program import BUCKET_BYTES
from .process_group import Group, Transfer

Arrival = Callable[[], list[Tensor]]  # waits for what is on its way; once


def buckets(tensors: Sequence[Tensor], limit_bytes: int = BUCKET_BYTES) -> list[list[int]]:
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
    started: list[tuple[list[int], list[int], Transfer]] = []
    for members in buckets(rows):
        sizes = [rows[i].shape[1] for i in members]
        started.append((members, sizes, group.start_reduce_scatter(pop_joined(rows, members, 1))))

    def wait() -> list[Tensor]:
        for members, sizes, transfer in started:
            shard = group.scattered(transfer.wait())
            for i, part in zip(members, shard.split(sizes), strict=True):
                rows[i] = part
        return rows

    return wait


def reduce_scatter(group: Group, flats: list[Tensor]) -> list[Tensor]:
    """This rank's `1 / size` of the sum of every flat tensor. Empties the list."""
    if group.size == 1:
        return flats
    flats[:] = [flat.view(group.size, -1) for flat in flats]
    for members in buckets(flats):
        sizes = [flats[i].shape[1] for i in members]
        shard = group.reduce_scatter(pop_joined(flats, members, 1))
        for i, part in zip(members, shard.split(sizes), strict=True):
            flats[i] = part
    return flats


def start_all_gather(group: Group, flats: Sequence[Tensor]) -> Arrival:
    """Start `all_gather`, all buckets at once."""
    if group.size == 1:
        arrived = list(flats)
        return lambda: arrived
    sizes = [flat.numel() for flat in flats]
    started = [
        (members, group.start_all_gather(joined([flats[i] for i in members])))
        for members in buckets(flats, BUCKET_BYTES // group.size)
    ]

    def wait() -> list[Tensor]:
        gathered: dict[int, Tensor] = {}
        while started:
            members, transfer = started.pop(0)
            parts = transfer.wait().split([sizes[i] for i in members], dim=1)
            del transfer
            gathered.update((i, part.reshape(-1)) for i, part in zip(members, parts, strict=True))
        return [gathered[i] for i in range(len(sizes))]

    return wait


def all_gather(group: Group, flats: Sequence[Tensor]) -> list[Tensor]:
    """Gathered flat tensors, of which each given one is this rank's `1 / size`."""
    if group.size == 1:
        return list(flats)
    gathered: dict[int, Tensor] = {}
    for members in buckets(flats, BUCKET_BYTES // group.size):
        rows = group.all_gather(joined([flats[i] for i in members]))
        parts = rows.split([flats[i].numel() for i in members], dim=1)
        for i, part in zip(members, parts, strict=True):
            gathered[i] = part.reshape(-1)
    return [gathered[i] for i in range(len(flats))]


def joined(tensors: Sequence[Tensor], start: int = 0) -> Tensor:
    """Tensors concatenated along dimension `start`; a single one is returned itself, not a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=start)


def pop_joined(tensors: list[Tensor], members: list[int], start: int = 0) -> Tensor:
    """Remove the tensors of a bucket from the list and join them, flattened after `start` dimensions."""
    values = [tensors[i].flatten(start) if len(members) > 1 else tensors[i] for i in members]
    for i in members:
        tensors[i] = values[0].new_empty(0)
    return joined(values, start)
