"""Branch and bound: is there a packing no higher than a given height?

Every packing can be pushed down until each buffer rests on address 0 or on another buffer. So each
open buffer either rests on buffers that are already placed, or it `floats`: it rests on one that is
still open. The search branches on this for one buffer after the other. A branch is pruned when in
some section the open buffers, from their least offsets on, no longer fit under the height. A buffer
may be branched on only if no open neighbour could still go below it; then placing it loses no
solution.

When the open buffers become disconnected in time, the components are searched one after the other,
and a component that fails backtracks to the decision that created it, not into its siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ....cost_model.compiled import compiled
from .sections import Ints, Sections

FOUND, NONE, STOPPED = 1, 0, -1
FAR = 1 << 61
FULLEST, LOWEST_TIGHTEST, LOWEST_FAILED, FAILED, TIGHTEST, LOWEST = range(6)


class Branching(NamedTuple):
    """The branching order (`rule`, and failures counted so far), and switches of its two prunings:
    the bound by sections and the decomposition."""

    rule: int
    by_failures: bool
    bounded: bool
    splitting: bool


class Board(NamedTuple):
    """Constants of one component (sizes, sections, neighbours) and the working arrays of a search.

    `buffer_failures` and `section_failures` outlive a search and guide the branching order.
    """

    size: Ints
    first: Ints
    last: Ints
    near: Ints  # neighbours in time of buffer i: near[near_at[i]:near_at[i + 1]]
    near_at: Ints
    buffer_failures: Ints
    section_failures: Ints
    rank: Ints  # order among buffers that are otherwise equal
    base: Ints  # highest top among placed neighbours
    placed: Ints
    floats: Ints
    low: Ints  # least offset of an open buffer; the offset of a placed one
    members: Ints  # open buffers of the current component
    stack: Ints  # per section, bytes open
    floor: Ints  # per section, least start of an open buffer
    trail: Ints  # (kind, buffer, old value) of every change
    frames: Ints  # (buffer, left, right, parent, trail, agenda, free) of every decision
    agenda: Ints  # (left, right, parent, next) of every component still to search


@compiled
def _open(board: Board, left: int, right: int) -> int:
    """Collect the open buffers between two sections, in order of their first; returns how many."""
    count = 0
    lo = np.searchsorted(board.first, left)
    hi = np.searchsorted(board.first, right)
    for i in range(lo, hi):
        if not board.placed[i]:
            board.members[count] = i
            count += 1
    return count


@compiled
def _starts(board: Board, count: int) -> bool:
    """Compute the least offset of every open buffer: its base or, if floating, the least top of an
    open neighbour. Returns False if a floating buffer has nothing to rest on.
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


@compiled
def _sort(members: Ints, count: int, low: Ints) -> None:
    """Sort open buffers by descending least offset."""
    keys = np.empty(count, np.int64)
    for k in range(count):
        keys[k] = -low[members[k]]
    members[:count] = members[:count][np.argsort(keys)]


@compiled
def _fits(board: Board, count: int, left: int, right: int, height: int, bounded: bool) -> bool:
    """Whether in every section the open buffers fit under the height from their least offsets on.

    Members come by descending offset, so `stack[s]` sums the sizes of those that start no lower.
    """
    for s in range(left, right):
        board.stack[s] = 0
        board.floor[s] = FAR
    for k in range(count):
        i = board.members[k]
        limit = height - board.low[i] - board.size[i]
        if limit < 0:
            board.buffer_failures[i] += 1
            return False
        for s in range(board.first[i], board.last[i]):
            if bounded and board.stack[s] > limit:
                board.buffer_failures[i] += 1
                board.section_failures[s] += 1
                return False
            board.stack[s] += board.size[i]
            board.floor[s] = board.low[i]
    return True


@compiled
def _urgency(board: Board, s: int, height: int, rule: int) -> tuple[float, float]:
    """Branching priority of a section: a pair, greatest first."""
    floor = float(board.floor[s])
    slack = height - floor - board.stack[s]
    if rule == FULLEST:
        return float(board.stack[s]), 0.0
    if rule == LOWEST_TIGHTEST:
        return -floor, -slack
    if rule == LOWEST_FAILED:
        return -floor, float(board.section_failures[s])
    if rule == FAILED:
        return (1 + board.section_failures[s]) / (slack + height / 100), 0.0
    return (-slack, 0.0) if rule == TIGHTEST else (-floor, 0.0)


@compiled
def _before(board: Board, i: int, j: int, by_failures: bool) -> bool:
    """Whether buffer `i` is branched on before buffer `j`."""
    if by_failures and board.buffer_failures[i] != board.buffer_failures[j]:
        return board.buffer_failures[i] > board.buffer_failures[j]
    return board.rank[i] < board.rank[j]


@compiled
def _choose(
    board: Board, count: int, left: int, right: int, height: int, rule: int, by_failures: bool
) -> int:
    """Buffer to branch on: one with the lowest offset in the most urgent section."""
    best, at = (-np.inf, -np.inf), -1
    for s in range(left, right):
        if board.floor[s] < FAR:
            urgency = _urgency(board, s, height, rule)
            if at < 0 or urgency > best:
                best, at = urgency, s
    chosen = -1
    for k in range(count):
        i = board.members[k]
        if board.first[i] <= at < board.last[i] and board.low[i] == board.floor[at]:
            if chosen < 0 or _before(board, i, chosen, by_failures):
                chosen = i
    return _beneath(board, chosen, by_failures)


@compiled
def _beneath(board: Board, i: int, by_failures: bool) -> int:
    """`i`, or an open neighbour that could go below it and must be branched on first."""
    while True:
        chosen = i
        for p in range(board.near_at[i], board.near_at[i + 1]):
            j = board.near[p]
            if not board.placed[j] and board.low[j] + board.size[j] <= board.low[i]:
                if chosen == i or _before(board, j, chosen, by_failures):
                    chosen = j
        if chosen == i:
            return i
        i = chosen


@compiled
def _place(board: Board, i: int, used: int) -> int:
    """Place buffer `i` on its base and raise its neighbours' bases. Returns the trail's length."""
    board.placed[i] = 1
    board.trail[used] = (0, i, 0)
    used += 1
    top = board.base[i] + board.size[i]
    for p in range(board.near_at[i], board.near_at[i + 1]):
        j = board.near[p]
        if not board.placed[j] and board.base[j] < top:  # a new base to rest on
            if board.floats[j]:
                board.trail[used] = (2, j, 1)
                board.floats[j] = 0
                used += 1
            board.trail[used] = (1, j, board.base[j])
            board.base[j] = top
            used += 1
    return used


@compiled
def _undo(board: Board, used: int, mark: int) -> None:
    while used > mark:
        used -= 1
        kind, i, old = board.trail[used]
        if kind == 0:
            board.placed[i] = 0
        elif kind == 1:
            board.base[i] = old
        else:
            board.floats[i] = old


@compiled
def _split(board: Board, count: int, parent: int, head: int, free: int) -> tuple[int, int]:
    """Push the components of the open buffers on the agenda; returns its head and length."""
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


@compiled
def search(
    board: Board, sections: int, height: int, looks: int, branching: Branching
) -> tuple[int, int]:
    """Returns (FOUND with offsets in `board.base`, NONE if there is no packing, or STOPPED; work).

    Work counts open buffers examined, at most `looks`. A completed search has one result under
    every branching.
    """
    used, depth, free, looked = 0, 0, 1, 0
    board.agenda[0] = (0, sections, -1, -1)
    head = 0
    while head >= 0:
        left, right, parent, after = board.agenda[head]
        head = after
        count = _open(board, left, right)
        looked += count
        if count == 0:
            continue
        if looked > looks:
            return STOPPED, looked
        grown, longer = _split(board, count, parent, head, free)
        if branching.splitting and longer > free + 1:
            head, free = grown, longer
            continue
        good = _starts(board, count)
        if good:
            _sort(board.members, count, board.low)
            good = _fits(board, count, left, right, height, branching.bounded)
        if good:
            rule, by_failures = branching.rule, branching.by_failures
            i = _choose(board, count, left, right, height, rule, by_failures)
            board.frames[depth] = (i, left, right, parent, used, head, free)
            used = _place(board, i, used)
            board.agenda[free] = (left, right, depth, head)
            head, free, depth = free, free + 1, depth + 1
            continue
        if parent < 0:
            return NONE, looked
        i, left, right, above, mark, head, free = board.frames[parent]
        _undo(board, used, mark)
        used, depth = mark, parent
        board.trail[used] = (2, i, 0)
        board.floats[i] = 1
        used += 1
        board.agenda[free] = (left, right, above, head)
        head, free = free, free + 1
    return FOUND, looked


def board(part: Sections) -> Board:
    """An empty board for buffers sorted by their first section."""
    n, count = len(part.size), part.count
    ends = np.searchsorted(part.first, part.last)
    later = ends - np.arange(n) - 1  # neighbours that come after each buffer
    one = np.repeat(np.arange(n), later)
    other = np.arange(len(one)) - np.repeat(np.cumsum(later) - later, later) + one + 1
    owner, neighbour = np.concatenate([one, other]), np.concatenate([other, one])
    order = np.argsort(owner, kind="stable")
    near = neighbour[order]
    near_at = np.searchsorted(owner[order], np.arange(n + 1)).astype(np.int64)
    each, section = _zeros(n), _zeros(count)
    return Board(
        size=part.size,
        first=part.first,
        last=part.last,
        near=near,
        near_at=near_at,
        buffer_failures=each(),
        section_failures=section(),
        rank=each(),
        base=each(),
        placed=each(),
        floats=each(),
        low=each(),
        members=each(),
        stack=section(),
        floor=section(),
        trail=_zeros((2 * len(near) + 4 * n, 3))(),
        frames=_zeros((n + 1, 7))(),
        agenda=_zeros((8 * n + 8, 4))(),
    )


def _zeros(shape: int | tuple[int, ...]) -> Callable[[], Ints]:
    return lambda: np.zeros(shape, np.int64)


def clear(board: Board) -> None:
    """Unplace all buffers; failure counts are kept."""
    for array in (board.base, board.placed, board.floats):
        array[:] = 0
