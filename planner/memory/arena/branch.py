"""Branch and bound: is there a packing no higher than a given height?

Every packing can be pushed down until each buffer rests on the floor or on another one. So for any
buffer whose place is open there are two cases: it rests on what is placed already, or it `floats`,
that is, it rests on a buffer which is still to be placed. The search asks this question of one
buffer after the other. A case is dropped when in some section the open buffers, each not before it
may start, no longer fit under the height. A buffer may be asked only if no open neighbour could still
slip below it; then nothing is lost by putting it down.

When the open buffers fall apart in time, the parts are searched one after the other, and a part that
fails goes back to the decision that made it, not to decisions inside its siblings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .sections import Ints, Sections

FOUND, NONE, STOPPED = 1, 0, -1
FAR = 1 << 61


class Board(NamedTuple):
    """What is fixed for one search (sizes, sections, neighbours, ranks) and its working arrays."""

    size: Ints
    first: Ints
    last: Ints
    near: Ints  # neighbours in time of buffer i: near[near_at[i]:near_at[i + 1]]
    near_at: Ints
    rank: Ints
    base: Ints  # highest top among placed neighbours
    placed: Ints
    floats: Ints
    low: Ints  # least offset of an open buffer; the offset of a placed one
    members: Ints  # open buffers of the part at work
    stack: Ints  # per section, bytes open
    floor: Ints  # per section, least start of an open buffer
    trail: Ints  # (kind, buffer, old value) of every change
    frames: Ints  # (buffer, left, right, parent, trail, agenda, free) of every decision
    agenda: Ints  # (left, right, parent, next) of every part still to search


@njit(cache=True)
def _open(board, left, right):
    """Collect the open buffers between two sections, in order of their first; returns how many."""
    count = 0
    lo = np.searchsorted(board.first, left)
    hi = np.searchsorted(board.first, right)
    for i in range(lo, hi):
        if not board.placed[i]:
            board.members[count] = i
            count += 1
    return count


@njit(cache=True)
def _starts(board, count):
    """Least offset of every open buffer: its base, or, floating, the least top it could rest on.

    Returns False if a floating buffer has nothing left to rest on.
    """
    low, size = board.low, board.size
    changed = False
    for k in range(count):
        i = board.members[k]
        low[i] = FAR if board.floats[i] else board.base[i]
        changed |= board.floats[i] != 0
    while changed:
        changed = False
        for k in range(count):
            i = board.members[k]
            if board.floats[i]:
                for p in range(board.near_at[i], board.near_at[i + 1]):
                    j = board.near[p]
                    if not board.placed[j] and low[j] + size[j] < low[i]:
                        low[i] = low[j] + size[j]
                        changed = True
    for k in range(count):
        if low[board.members[k]] >= FAR:
            return False
    return True


@njit(cache=True)
def _sort(members, count, low):
    """Open buffers from the highest start to the lowest."""
    keys = np.empty(count, np.int64)
    for k in range(count):
        keys[k] = -low[members[k]]
    members[:count] = members[:count][np.argsort(keys)]


@njit(cache=True)
def _fits(board, count, left, right, height):
    """Whether every section can hold its open buffers one above the other from their starts on.

    Members come highest start first, so `stack[s]` holds the sizes of those that start no lower.
    """
    for s in range(left, right):
        board.stack[s] = 0
        board.floor[s] = FAR
    for k in range(count):
        i = board.members[k]
        start = board.low[i]
        limit = height - start - board.size[i]
        if limit < 0:
            return False
        for s in range(board.first[i], board.last[i]):
            if board.stack[s] > limit:
                return False
            board.stack[s] += board.size[i]
            board.floor[s] = start
    return True


@njit(cache=True)
def _choose(board, count, left, right, height, rule):
    """The next buffer to ask about: of the tightest section, the lowest start, then the rank."""
    best, at = FAR, left
    for s in range(left, right):
        if board.floor[s] < FAR:
            slack = height - board.floor[s] - board.stack[s]
            if rule == 1:
                slack = board.floor[s]
            elif rule == 2:
                slack = board.floor[s] * 4096 + min(slack // 1024, 4095)
            if slack < best:
                best, at = slack, s
    chosen = np.int64(-1)
    for k in range(count):
        i = board.members[k]
        if board.first[i] <= at < board.last[i] and board.low[i] == board.floor[at]:
            if chosen < 0 or board.rank[i] < board.rank[chosen]:
                chosen = i
    return _beneath(board, chosen)


@njit(cache=True)
def _beneath(board, i):
    """`i`, or an open buffer that must be asked before it: one that may slip below it."""
    moved = True
    while moved:
        moved = False
        best = board.low[i] + (1 if board.floats[i] else 0)
        chosen = i
        for p in range(board.near_at[i], board.near_at[i + 1]):
            j = board.near[p]
            if not board.placed[j] and board.low[j] + board.size[j] <= board.low[i]:
                if chosen == i or board.rank[j] < board.rank[chosen]:
                    chosen = j
        moved = chosen != i
        i = chosen
    return i


@njit(cache=True)
def _place(board, i, used):
    """Put buffer `i` on its base; its neighbours go above it. Returns the trail's length."""
    board.placed[i] = 1
    board.trail[used] = (0, i, 0)
    used += 1
    top = board.base[i] + board.size[i]
    for p in range(board.near_at[i], board.near_at[i + 1]):
        j = board.near[p]
        if not board.placed[j] and board.base[j] < top:
            if board.floats[j]:
                board.trail[used] = (2, j, 1)
                board.floats[j] = 0
                used += 1
            board.trail[used] = (1, j, board.base[j])
            board.base[j] = top
            used += 1
    return used


@njit(cache=True)
def _undo(board, used, mark):
    while used > mark:
        used -= 1
        kind, i, old = board.trail[used]
        if kind == 0:
            board.placed[i] = 0
        elif kind == 1:
            board.base[i] = old
        else:
            board.floats[i] = old


@njit(cache=True)
def _split(board, count, parent, head, free):
    """Put the parts into which the open buffers fall on the agenda; returns its head and length."""
    k = 0
    while k < count:
        left = board.first[board.members[k]]
        right = board.last[board.members[k]]
        while k < count and board.first[board.members[k]] < right:
            right = max(right, board.last[board.members[k]])
            k += 1
        board.agenda[free] = (left, right, parent, head)
        head, free = free, free + 1
    return head, free


@njit(cache=True)
def search(board, sections, height, nodes, rule):
    """FOUND with offsets in `board.low`, NONE if there is no packing, STOPPED after `nodes`."""
    used, depth, free, visited = 0, 0, 1, 0
    board.agenda[0] = (0, sections, -1, -1)
    head = 0
    while head >= 0:
        left, right, parent, after = board.agenda[head]
        head = after
        count = _open(board, left, right)
        if count == 0:
            continue
        grown, longer = _split(board, count, parent, head, free)
        if longer > free + 1:
            head, free = grown, longer
            continue
        visited += 1
        if visited > nodes:
            return STOPPED, visited
        good = _starts(board, count)
        if good:
            _sort(board.members, count, board.low)
            good = _fits(board, count, left, right, height)
        if good:
            i = _choose(board, count, left, right, height, rule)
            board.frames[depth] = (i, left, right, parent, used, head, free)
            used = _place(board, i, used)
            board.agenda[free] = (left, right, depth, head)
            head, free, depth = free, free + 1, depth + 1
            continue
        if parent < 0:
            return NONE, visited
        i, left, right, above, mark, head, free = board.frames[parent]
        _undo(board, used, mark)
        used, depth = mark, parent
        board.trail[used] = (2, i, board.floats[i])
        board.floats[i] = 1
        used += 1
        board.agenda[free] = (left, right, above, head)
        head, free = free, free + 1
    return FOUND, visited
