"""Many ranks of an exchange in one process, a message at a time: for tests and simulations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.compression.kernel import Transfer
from .worker import Parcel, Sum, Work


def lockstep(workers: Sequence[Work], inner: int) -> list[Tensor]:
    """The results of all ranks, of which `inner` neighbours each are a node."""
    parcels: list[Parcel] = []
    results: list[Tensor] = []
    for worker in workers:
        try:
            parcels.append(next(worker))
        except StopIteration as stop:
            results.append(stop.value)
    while parcels:
        arrived = _travel(parcels, inner)
        parcels = []
        for worker, data in zip(workers, arrived, strict=True):
            try:
                parcels.append(worker.send(data))
            except StopIteration as stop:
                results.append(stop.value)
    return results


def _travel(parcels: list[Parcel], inner: int) -> list[Tensor]:
    data, how = [parcel.data for parcel in parcels], parcels[0].how
    if isinstance(how, Sum):
        return [torch.stack(data).sum(0)] * len(data)
    if how.kind == "send":
        return data
    return [_arrived(rank, data, how, inner) for rank in range(len(data))]


def _arrived(rank: int, data: list[Tensor], how: Transfer, inner: int) -> Tensor:
    members = members_of(rank, len(data), how.level, inner)
    if how.kind == "all_gather":
        return torch.cat([data[member] for member in members])
    place = members.index(rank)
    return torch.cat([data[member].chunk(how.size)[place] for member in members])


def members_of(rank: int, ranks: int, level: str, inner: int) -> list[int]:
    """The ranks that one rank exchanges with over a level."""
    if level == "inner":
        return list(range(rank // inner * inner, rank // inner * inner + inner))
    if level == "outer":
        return list(range(rank % inner, ranks, inner))
    return list(range(ranks))
