"""Neighbours of a placement: groups of operators that go to another device together.

Operators are moved by blocks: a block is one unit, or a chain of units while a graph is coarse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....cost_model.compiled import inner
from ....cost_model.placement.arrays import GraphArrays, Ints

MOST = 24  # blocks that one move may take


class Blocks(NamedTuple):
    """`of` (n): the block of every operator; block `b` has `members[first[b]:first[b + 1]]`."""

    of: Ints
    first: Ints
    members: Ints


def blocks_of(of: Ints) -> Blocks:
    """Blocks from the block number of every operator, 0 and up without holes."""
    first = np.searchsorted(np.sort(of), np.arange(int(of.max()) + 2)).astype(np.int64)
    return Blocks(of, first, np.argsort(of, kind="stable").astype(np.int64))


@inner
def propose(
    work: GraphArrays,
    blocks: Blocks,
    device: Ints,
    seed: int,
    marked: NDArray[np.bool_],
    chosen: Ints,
) -> tuple[int, int]:
    """Propose a move around operator `seed`: fills `chosen`, returns (number of blocks, target
    device).

    `marked` (blocks) is scratch, all False before and after.
    """
    home = device[seed]
    size = 1
    while size < MOST and np.random.random() < 0.6:
        size += 1
    if np.random.random() < 0.4:
        size = 1
    count = _grow(work, blocks, device, seed, size, marked, chosen)
    for i in range(count):
        marked[chosen[i]] = False
    target = home
    if np.random.random() < 0.5:
        target = _near(work, blocks, device, chosen[np.random.randint(count)])
    if target == home:
        step = int(np.random.randint(len(work.capacity) - 1))
        target = (home + 1 + step) % len(work.capacity)
    return count, target


@inner
def _grow(
    work: GraphArrays,
    blocks: Blocks,
    device: Ints,
    seed: int,
    size: int,
    marked: NDArray[np.bool_],
    chosen: Ints,
) -> int:
    """Collect up to `size` connected blocks on the seed's device by a random walk; returns how
    many.
    """
    chosen[0] = blocks.of[seed]
    marked[chosen[0]] = True
    count = 1
    for _ in range(3 * (size - 1)):
        if count == size:
            break
        other = _neighbour(work, blocks, chosen[np.random.randint(count)])
        if other >= 0 and device[other] == device[seed] and not marked[blocks.of[other]]:
            chosen[count] = blocks.of[other]
            marked[chosen[count]] = True
            count += 1
    return count


@inner
def _neighbour(work: GraphArrays, blocks: Blocks, block: int) -> int:
    """A random neighbour of a random member of a block, or -1."""
    first = blocks.first[block]
    v = blocks.members[first + np.random.randint(blocks.first[block + 1] - first)]
    operator = work.operators[v]
    outward, inward = operator.after - operator.first, operator.read_after - operator.read
    if outward + inward == 0:
        return -1
    pick = int(np.random.randint(int(outward + inward)))
    if pick < outward:
        return work.edges[operator.first + pick].target
    return work.edges[work.reads[operator.read + pick - outward]].source


@inner
def _near(work: GraphArrays, blocks: Blocks, device: Ints, block: int) -> int:
    other = _neighbour(work, blocks, block)
    nearest = other if other >= 0 else blocks.members[blocks.first[block]]
    return int(device[nearest])


@inner
def shift(blocks: Blocks, device: Ints, chosen: Ints, count: int, target: int, undo: Ints) -> None:
    """Move blocks to a device; `undo` (blocks) receives their previous devices."""
    for i in range(count):
        block = chosen[i]
        undo[i] = device[blocks.members[blocks.first[block]]]
        for j in range(blocks.first[block], blocks.first[block + 1]):
            device[blocks.members[j]] = target


@inner
def shift_back(blocks: Blocks, device: Ints, chosen: Ints, count: int, undo: Ints) -> None:
    """Undo a shift."""
    for i in range(count):
        for j in range(blocks.first[chosen[i]], blocks.first[chosen[i] + 1]):
            device[blocks.members[j]] = undo[i]
