"""Groups of one rank by level: all ranks, those of its node, and its peers in all nodes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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
