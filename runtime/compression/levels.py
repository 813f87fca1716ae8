"""Groups of a compressed collective: all ranks, those of a node, and the peers in all nodes."""

from __future__ import annotations

from ..comm.process_group import GroupPool, Partition
from .work import GroupHierarchy


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
