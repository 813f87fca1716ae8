"""Gradients of the rows of tables that a step read: who has which travels with them.

    backward of a call    rows are collected on the rank that read them
    end of the step       equal rows are added up, all-gathered over every group of ranks that has
                          parts of the sum, and added up again; a rank keeps those of its own shard

What is sent grows with the distinct rows that were read, not with the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ...comm.process_group import Group
from ..local_parameter import LocalParameter
from .reduced import ReducedParameters


class RowGradients:
    """The sparse gradients of a step, by parameter: `[rows, columns]` of a local shard."""

    def __init__(self, store: ReducedParameters) -> None:
        self.store = store
        self.parts: dict[str, Tensor] = {}

    def add(self, parameter: LocalParameter, gradient: Tensor) -> None:
        """Collect the gradient of a backward call (sparse, its rows in any order)."""
        gradient = gradient.to(self.store.summed_dtype(parameter))
        earlier = self.parts.get(parameter.name)
        self.parts[parameter.name] = gradient if earlier is None else earlier + gradient

    def complete(self) -> Iterator[tuple[LocalParameter, Tensor]]:
        """The whole sums, sparse and coalesced, of the rows of this rank's optimizer shards."""
        tables = [p for p in self.store.trainable() if p.name in self.parts]
        for (mesh, axes), members in _by_groups(tables).items():
            partial = self.store.groups.partial.get((mesh, axes))
            levels = [g for g in (partial, *self.store.flat_groups[mesh]) if g is not None]
            rows = [self.parts.pop(p.name).coalesce() for p in members]
            for group in levels:
                rows = _summed(group, rows)
            for parameter, gradient in zip(members, rows, strict=True):
                yield parameter, self.shard_rows(parameter, gradient)

    def shard_rows(self, parameter: LocalParameter, gradient: Tensor) -> Tensor:
        """The rows of this rank's optimizer shard, numbered from its first."""
        leaf, sharding = parameter.leaf, parameter.sharding
        assert leaf is not None
        if parameter.total_degree == 1:
            return gradient
        groups = self.store.flat_groups[parameter.spec.mesh]
        degrees = zip(groups, sharding.degrees, strict=True)
        j, k, m = (group.index if degree > 1 else 0 for group, degree in degrees)
        places, values = gradient.indices()[0], gradient.values()
        rows, parts, before = list[Tensor](), list[Tensor](), 0
        for first, last in sharding.ranges((j, k, m), len(groups)):
            start, end = first // sharding.row, last // sharding.row
            here = (places >= start) & (places < end)
            rows.append(places[here] + (before - start))
            parts.append(values[here])
            before += end - start
        return _sparse(torch.cat(rows), torch.cat(parts), leaf.shape, coalesced=True)

    def clear(self) -> None:
        """Drop what backward has collected."""
        self.parts.clear()


def rows_read(gradient: Tensor) -> Tensor:
    """Ones in the rows that a sparse gradient has, zeros elsewhere (dense, of its shape)."""
    gradient = gradient.coalesce()
    return _sparse(
        gradient.indices()[0], torch.ones_like(gradient.values()), gradient.shape
    ).to_dense()


def rows_where(gradient: Tensor, read: Tensor) -> Tensor:
    """The rows of a dense gradient that were `read`, which has ones there: the same, sparse."""
    rows = read[:, 0].nonzero()[:, 0]
    return _sparse(rows, gradient[rows], gradient.shape, coalesced=True)


def _by_groups(
    tables: Iterable[LocalParameter],
) -> dict[tuple[int, tuple[str, ...]], list[LocalParameter]]:
    members: dict[tuple[int, tuple[str, ...]], list[LocalParameter]] = {}
    for parameter in tables:
        members.setdefault((parameter.spec.mesh, parameter.spec.partial_axes), []).append(parameter)
    return members


def _summed(group: Group, parts: list[Tensor]) -> list[Tensor]:
    """The sums over the ranks of a group of coalesced sparse tensors."""
    if group.size == 1 or not parts:
        return parts
    mine = torch.tensor([part.indices().shape[1] for part in parts], device=parts[0].device)
    counts = group.all_gather(mine).tolist()  # [ranks, parts]
    return [_gathered(group, part, [row[i] for row in counts]) for i, part in enumerate(parts)]


def _gathered(group: Group, part: Tensor, counts: list[int]) -> Tensor:
    """One of them, of which the ranks have so many rows."""
    most = max(counts)
    places, values = part.indices()[0], part.values()
    all_places = group.all_gather(_padded(places, most))
    all_values = group.all_gather(_padded(values, most))
    rows = [(rank, slice(0, count)) for rank, count in enumerate(counts)]
    return _sparse(
        torch.cat([all_places[place] for place in rows]),
        torch.cat([all_values[place] for place in rows]),
        part.shape,
    ).coalesce()


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros((rows - x.shape[0], *x.shape[1:]))])


def _sparse(
    places: Tensor, values: Tensor, shape: Iterable[int], coalesced: bool = False
) -> Tensor:
    return torch.sparse_coo_tensor(
        places[None], values, tuple(shape), is_coalesced=coalesced or None, check_invariants=False
    )
