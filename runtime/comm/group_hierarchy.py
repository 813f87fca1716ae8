"""Groups of one rank by level: all ranks, those of its node, and its peers in all nodes.

Rows that choose their rank travel level by level, so that a rank has one message for every other node:

    rows for (node, place)     │ inside the node: to the rank at that place │ to its peer in that node
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .process_group import GroupPool, Partition
from .transfer import Arriving


class RankGroup(Protocol):
    """Collectives of a group, as `process_group.Group` has them."""

    @property
    def size(self) -> int: ...
    @property
    def index(self) -> int: ...
    def all_reduce(self, x: Tensor) -> Tensor: ...
    def start_all_reduce(self, x: Tensor) -> Arriving: ...
    def all_gather(self, x: Tensor) -> Tensor: ...
    def all_to_all(self, x: Tensor) -> Tensor: ...
    def exchange_rows(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor: ...
    def exchange_among(self, members: Sequence[int], rows: Tensor) -> Tensor: ...


class GroupHierarchy(NamedTuple):
    """Groups of one rank: all ranks, inside its node, and its peers in all nodes.

    Rank `outer.index * inner.size + inner.index` of `all` is this one.
    """

    all: RankGroup
    inner: RankGroup
    outer: RankGroup


def group_hierarchy(
    pool: GroupPool, name: str, partition: Partition, inner: int = 1
) -> GroupHierarchy:
    """Groups of this rank; `inner` neighbours of every part share a node.

    Every rank calls this in the same order.
    """
    nodes = tuple(
        part[start : start + inner] for part in partition for start in range(0, len(part), inner)
    )
    peers = tuple(part[place::inner] for part in partition for place in range(inner))
    return GroupHierarchy(
        pool.group(name, partition),
        pool.group(f"{name}, inside nodes", nodes),
        pool.group(f"{name}, across nodes", peers),
    )


class RowRoute(Protocol):
    """Ways of rows to ranks and back: `there` takes them sorted by the rank that they go to, and gives
    those that arrive, sorted by the rank that they are from."""

    def there(self, rows: Tensor) -> Tensor: ...
    def back(self, rows: Tensor) -> Tensor: ...


class DirectRoute:
    """Every rank sends to every other. `exchange` sends and receives so many rows per rank; `counts`:
    rows to each rank."""

    def __init__(
        self, exchange: Callable[[Tensor, list[int], list[int]], Tensor], counts: Tensor
    ) -> None:
        one = [1] * len(counts)
        self.exchange = exchange
        self.sent: list[int] = counts.tolist()
        self.received: list[int] = exchange(counts, one, one).tolist()

    def there(self, rows: Tensor) -> Tensor:
        return self.exchange(rows, self.sent, self.received)

    def back(self, rows: Tensor) -> Tensor:
        return self.exchange(rows, self.received, self.sent)


class NodeRoute:
    """Level by level: the same rows in the same order as a `DirectRoute` gives.

    `sent` `[nodes, places]` counts rows to every rank, `near` `[sources in this node, nodes]` those
    that this rank passes on, `arrived` `[nodes, sources]` those for it.
    """

    def __init__(self, levels: GroupHierarchy, counts: Tensor) -> None:
        self.levels = levels
        nodes, places = levels.outer.size, levels.inner.size
        sent = counts.view(nodes, places)
        near = levels.inner.exchange_rows(sent.T.contiguous(), [1] * places, [1] * places)
        arrived = levels.outer.exchange_rows(near.T.contiguous(), [1] * nodes, [1] * nodes)
        self.sent: list[list[int]] = sent.tolist()
        self.near: list[list[int]] = near.tolist()
        self.arrived: list[list[int]] = arrived.tolist()

    def there(self, rows: Tensor) -> Tensor:
        sent, passed = _columns(self.sent), _columns(self.near)
        rows = self.levels.inner.exchange_rows(
            _transposed(rows, self.sent), _totals(sent), _totals(self.near)
        )
        return self.levels.outer.exchange_rows(
            _transposed(rows, self.near), _totals(passed), _totals(self.arrived)
        )

    def back(self, rows: Tensor) -> Tensor:
        sent, passed = _columns(self.sent), _columns(self.near)
        rows = self.levels.outer.exchange_rows(rows, _totals(self.arrived), _totals(passed))
        rows = self.levels.inner.exchange_rows(
            _transposed(rows, passed), _totals(self.near), _totals(sent)
        )
        return _transposed(rows, sent)


def _columns(counts: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*counts, strict=True)]


def _totals(counts: list[list[int]]) -> list[int]:
    return [sum(row) for row in counts]


def _transposed(rows: Tensor, counts: list[list[int]]) -> Tensor:
    """Rows that are sorted by the first and second index of their counts, sorted by the second one
    first."""
    blocks = rows.split([count for row in counts for count in row])
    width = len(counts[0])
    return torch.cat([block for column in range(width) for block in blocks[column::width]])
