"""Fill a buffer of fixed shards, each tensor at the earliest valid offset.

For a fixed order earliest is optimal, since the end of a tensor is monotone in the end of its
predecessor. So only the order is searched.
"""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled
from .kinds import Ints

NEVER = 1 << 61


@compiled
def start(offset: int, elements: int, block: int, shard: int) -> int:
    """First offset from `offset` on at which no shard boundary splits a block; NEVER if none."""
    while True:
        rest = shard - offset % shard  # elements up to the next shard boundary
        if elements <= rest:
            return offset
        divides = shard % block == 0
        least = (
            0 if divides else elements - shard
        )  # a longer rest is needed to cross one boundary only
        aligned = rest - rest % block
        if aligned > 0 and aligned >= least:
            return offset + rest - aligned
        if rest == shard:
            return NEVER
        offset += rest


@compiled
def fill(
    elements: Ints, block: Ints, counts: Ints, shard: int, ranks: int, rule: int, patience: int
) -> tuple[int, Ints, Ints]:
    """Greedy filling: returns (number of tensors placed, kinds in order, offset of each).

    Among the kinds whose earliest offset is at most `patience` after the soonest it takes the one
    with the largest block (`rule` 0), the most elements (1) or the fewest (2); ties go to the
    soonest.
    """
    remaining = counts.copy()
    total = remaining.sum()
    kinds, starts = np.empty(total, np.int64), np.empty(total, np.int64)
    first = np.empty(len(remaining), np.int64)
    offset = 0
    for placed in range(total):
        soonest = NEVER
        for k in range(len(remaining)):
            first[k] = start(offset, elements[k], block[k], shard) if remaining[k] else NEVER
            soonest = min(soonest, first[k])
        if soonest >= NEVER:
            return placed, kinds, starts
        chosen = -1
        for k in range(len(remaining)):
            if first[k] <= soonest + patience:
                if chosen < 0 or _prefers(elements, block, first, k, chosen, rule):
                    chosen = k
        offset = first[chosen] + elements[chosen]
        if offset > shard * ranks:
            return placed, kinds, starts
        kinds[placed], starts[placed] = chosen, first[chosen]
        remaining[chosen] -= 1
    return total, kinds, starts


@compiled
def _prefers(elements: Ints, block: Ints, first: Ints, k: int, other: int, rule: int) -> bool:
    if rule == 0:
        a, b = block[k], block[other]
    else:
        a, b = elements[k], elements[other]
        if rule == 2:
            a, b = b, a
    return a > b or (a == b and first[k] < first[other])


@compiled
def least_end(
    elements: Ints, block: Ints, counts: Ints, shard: int, ranks: int
) -> tuple[Ints, Ints]:
    """Exact least end over all orders, by dynamic programming over the tensors used of each kind.

    Returns per state (mixed-radix number of the counts used) the least end and the kind placed
    last.
    """
    states = 1
    for k in range(len(counts)):
        states *= counts[k] + 1
    end = np.full(states, NEVER, np.int64)
    last = np.full(states, -1, np.int64)
    end[0] = 0
    for state in range(states):
        if end[state] >= NEVER:
            continue
        unit = 1
        for k in range(len(counts)):
            if state // unit % (counts[k] + 1) < counts[k]:
                first = start(end[state], elements[k], block[k], shard)
                after = state + unit
                if first < NEVER and first + elements[k] < end[after]:
                    if first + elements[k] <= shard * ranks:
                        end[after], last[after] = first + elements[k], k
            unit *= counts[k] + 1
    return end, last
