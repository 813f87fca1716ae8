"""Filling a buffer of given shards: each tensor as early as it may start.

For a fixed order that is best: the least end of a tensor never falls when what is before it ends
later. What remains is the order.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEVER = 1 << 61


@njit(cache=True)
def start(at, elements, block, shard):
    """The first place from `at` on where a tensor may start; NEVER if there is none."""
    while True:
        rest = shard - at % shard  # elements up to the next cut
        if elements <= rest:
            return at
        whole = shard % block == 0
        least = 0 if whole else elements - shard  # a longer rest is needed to meet one cut only
        aligned = rest - rest % block
        if aligned > 0 and aligned >= least:
            return at + rest - aligned
        if rest == shard:
            return NEVER
        at += rest


@njit(cache=True)
def fill(elements, block, counts, shard, ranks, rule, patience):
    """Kinds of tensors in the order of a greedy filling, and where each starts.

    Of the kinds that may start at most `patience` after the soonest it takes the one with the
    biggest block (`rule` 0), the most elements (1) or the fewest (2); between equals the soonest.
    Returns how many were laid before the buffer was full.
    """
    left = counts.copy()
    total = left.sum()
    kinds, starts = np.empty(total, np.int64), np.empty(total, np.int64)
    first = np.empty(len(left), np.int64)
    at = 0
    for done in range(total):
        soonest = NEVER
        for k in range(len(left)):
            first[k] = start(at, elements[k], block[k], shard) if left[k] else NEVER
            soonest = min(soonest, first[k])
        if soonest >= NEVER:
            return done, kinds, starts
        chosen = -1
        for k in range(len(left)):
            if first[k] <= soonest + patience:
                if chosen < 0 or _prefers(elements, block, first, k, chosen, rule):
                    chosen = k
        at = first[chosen] + elements[chosen]
        if at > shard * ranks:
            return done, kinds, starts
        kinds[done], starts[done] = chosen, first[chosen]
        left[chosen] -= 1
    return total, kinds, starts


@njit(cache=True)
def _prefers(elements, block, first, k, other, rule):
    if rule == 0:
        a, b = block[k], block[other]
    else:
        a, b = elements[k], elements[other]
        if rule == 2:
            a, b = b, a
    return a > b or (a == b and first[k] < first[other])


@njit(cache=True)
def least_end(elements, block, counts, shard, ranks):
    """The least end over all orders, exactly: over every number of tensors taken of each kind.

    Also returns, per state, the kind taken last (states number as mixed radix of the counts).
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
