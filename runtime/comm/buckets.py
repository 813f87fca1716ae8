"""Collectives over many tensors at once: small ones travel together, large ones alone.

Sums take over the list that they are given: what has travelled is let go of, so that beside all
tensors there is one bucket.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.program import BUCKET_BYTES
from .process_group import Group


def buckets(tensors: Sequence[Tensor], limit_bytes: int = BUCKET_BYTES) -> list[list[int]]:
    """Positions of tensors that travel together: one element type, at most `limit_bytes`."""
    made: list[list[int]] = []
    open_: dict[torch.dtype, tuple[list[int], int]] = {}
    for position, tensor in enumerate(tensors):
        size = tensor.numel() * tensor.element_size()
        members, total = open_.get(tensor.dtype, ([], 0))
        if members and total + size <= limit_bytes:
            members.append(position)
            open_[tensor.dtype] = (members, total + size)
        else:
            made.append([position])
            open_[tensor.dtype] = (made[-1], size)
    return made


def all_reduce(group: Group, tensors: list[Tensor]) -> list[Tensor]:
    """The sums over the ranks, each in a tensor of its own shape."""
    if group.size == 1:
        return tensors
    for members in buckets(tensors):
        shapes = [tensors[i].shape for i in members]
        total = group.all_reduce(taken(tensors, members))
        parts = total.view(-1).split([shape.numel() for shape in shapes])
        for i, part, shape in zip(members, parts, shapes, strict=True):
            tensors[i] = part.view(shape)
    return tensors


def reduce_scatter(group: Group, flats: list[Tensor]) -> list[Tensor]:
    """This rank's `1 / size` of the sum of every flat tensor."""
    if group.size == 1:
        return flats
    flats[:] = [flat.view(group.size, -1) for flat in flats]
    for members in buckets(flats):
        sizes = [flats[i].shape[1] for i in members]
        piece = group.reduce_scatter(taken(flats, members, 1))
        for i, part in zip(members, piece.split(sizes), strict=True):
            flats[i] = part
    return flats


def all_gather(group: Group, flats: Sequence[Tensor]) -> list[Tensor]:
    """The whole of which each flat tensor is this rank's `1 / size`."""
    if group.size == 1:
        return list(flats)
    wholes: dict[int, Tensor] = {}
    for members in buckets(flats, BUCKET_BYTES // group.size):
        rows = group.all_gather(joined([flats[i] for i in members]))
        parts = rows.split([flats[i].numel() for i in members], dim=1)
        for i, part in zip(members, parts, strict=True):
            wholes[i] = part.reshape(-1)
    return [wholes[i] for i in range(len(flats))]


def joined(tensors: Sequence[Tensor], start: int = 0) -> Tensor:
    """Side by side along a dimension: one alone is itself, not a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=start)


def taken(tensors: list[Tensor], members: list[int], start: int = 0) -> Tensor:
    """These tensors as one, joined along what lies in `start` dimensions; their places are empty."""
    own = [tensors[i].flatten(start) if len(members) > 1 else tensors[i] for i in members]
    for i in members:
        tensors[i] = own[0].new_empty(0)
    return joined(own, start)
