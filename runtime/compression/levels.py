"""Groups of an exchange: everybody, the ranks of a node, and one's peers in all nodes."""

from __future__ import annotations

from ..comm.process_group import Partition, Pool
from .work import Levels


def levels(pool: Pool, name: str, partition: Partition, inner: int = 1) -> Levels:
    """Levels of this rank; `inner` neighbours of every part share a node.

    Every rank calls this in the same order.
    """
    nodes = tuple(
        part[start : start + inner] for part in partition for start in range(0, len(part), inner)
    )
    peers = tuple(part[place::inner] for part in partition for place in range(inner))
    return Levels(
        pool.group(name, partition),
        pool.group(f"{name}, inside nodes", nodes),
        pool.group(f"{name}, across nodes", peers),
    )
