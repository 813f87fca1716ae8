"""Collectives over many tensors at once: small ones travel together, large ones alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ir.program import BUCKET_BYTES
from .group import Group


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


def all_reduce(group: Group, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over the ranks, each in a tensor of its own shape."""
    if group.size == 1:
        return list(tensors)
    sums: dict[int, Tensor] = {}
    for members in buckets(tensors):
        if len(members) == 1:
            sums[members[0]] = group.all_reduce(tensors[members[0]])
            continue
        total = group.all_reduce(torch.cat([tensors[i].reshape(-1) for i in members]))
        parts = total.split([tensors[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            sums[i] = part.view(tensors[i].shape)
    return [sums[i] for i in range(len(tensors))]


def reduce_scatter(group: Group, flats: Sequence[Tensor]) -> list[Tensor]:
    """This rank's `1 / size` of the sum of every flat tensor."""
    if group.size == 1:
        return list(flats)
    rows = [flat.view(group.size, -1) for flat in flats]
    pieces: dict[int, Tensor] = {}
    for members in buckets(rows):
        piece = group.reduce_scatter(joined([rows[i] for i in members]))
        parts = piece.split([rows[i].shape[1] for i in members])
        pieces.update(zip(members, parts, strict=True))
    return [pieces[i] for i in range(len(flats))]


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


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Side by side along the last dimension: one alone is itself, not a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=-1)
