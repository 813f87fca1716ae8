"""Arenas of repeated layers: what lives inside one piece is packed once, then the pieces are stacked.

What is born and dies between two cuts of time is packed by itself and becomes one block; equal
pieces share their packing. The blocks and everything that outlives its piece are packed together.
This is the two-level plan of MEMO (SIGMOD 2025): work grows with distinct pieces, not with depth.
A block holds its height as long as its piece runs. Where that is too high beside all else that is
there, in the pieces near the peak, buffers stay by themselves.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from ...ir.plan.allocation import Buffer, Packing
from .arena import pack
from .arena.pack import status_of
from .arena.sections import Ints, sections


def stack(
    buffers: Sequence[Buffer],
    cuts: Sequence[int],
    capacity_bytes: int | None = None,
    *,
    time_limit_seconds: float = 10.0,
    minimise: bool = False,
) -> Packing:
    """Offsets of all buffers; `cuts` are the times, in rising order, at which pieces begin. A peak
    within the capacity is good enough, but to `minimise`.

    Where the blocks do not reach the bound, first fit over all buffers is tried too, and the lower
    of the two is taken. Of the time, distinct pieces get up to a tenth each, the blocks what is left.
    """
    bound = sections(buffers).bound()
    goal = None if minimise else capacity_bytes
    offsets = blocks(buffers, cuts, time_limit_seconds, goal)
    peak = max((b.size + at for b, at in zip(buffers, offsets, strict=True)), default=0)
    if peak > max(bound, goal or 0):
        flat = pack(buffers, time_limit_seconds=0.0)
        if flat.peak_bytes < peak:
            offsets, peak = flat.offsets, flat.peak_bytes
    return Packing(offsets, peak, bound, status_of(peak, bound, capacity_bytes))


def blocks(
    buffers: Sequence[Buffer],
    cuts: Sequence[int],
    time_limit_seconds: float,
    goal_bytes: int | None = None,
) -> tuple[int, ...]:
    """Offsets when what lives inside one piece is one block; `goal_bytes` are good enough."""
    pieces: dict[int, list[int]] = defaultdict(list)
    lasting: list[int] = []
    for i, b in enumerate(buffers):
        piece = bisect_right(cuts, b.lower)
        inside = piece < len(cuts) and b.upper <= cuts[piece]
        (pieces[piece] if inside else lasting).append(i)
    deadline = time.perf_counter() + time_limit_seconds
    inner = _Inner(time_limit_seconds / 10, deadline)
    packed = {p: inner.pack([buffers[i] for i in members]) for p, members in pieces.items()}
    high = _too_high(buffers, cuts, {p: made.peak_bytes for p, made in packed.items()}, lasting)
    for p in high:
        lasting += pieces.pop(p)
        del packed[p]
    tops = [Buffer("", cuts[p - 1], cuts[p], made.peak_bytes) for p, made in packed.items()]
    left = max(0.0, deadline - time.perf_counter())
    rest = [*tops, *(buffers[i] for i in lasting)]
    outer = pack(rest, goal_bytes, time_limit_seconds=left)
    offsets = dict(zip(lasting, outer.offsets[len(tops) :], strict=True))
    for base, (p, made) in zip(outer.offsets, packed.items(), strict=False):
        offsets |= {i: base + at for i, at in zip(pieces[p], made.offsets, strict=True)}
    return tuple(offsets[i] for i in range(len(buffers)))


def _too_high(
    buffers: Sequence[Buffer], cuts: Sequence[int], heights: dict[int, int], lasting: Sequence[int]
) -> list[int]:
    """The pieces whose blocks do not fit under the bound with all that lasts beside them."""
    loads = live_bytes([buffers[i] for i in lasting], cuts[-1])
    bound = int(live_bytes(buffers, cuts[-1]).max(initial=0))
    return [p for p, top in heights.items() if top + loads[cuts[p - 1] : cuts[p]].max() > bound]


def live_bytes(buffers: Sequence[Buffer], end: int) -> Ints:
    """Bytes that are live at every time before `end`."""
    change = np.zeros(end + 1, np.int64)
    for b in buffers:
        change[b.lower] += b.size
        change[min(b.upper, end)] -= b.size
    return np.cumsum(change)[:-1]


class _Inner:
    """Packs pieces, each shape once: a piece is known by its lifetimes, from its start, and sizes."""

    def __init__(self, seconds: float, deadline: float) -> None:
        self.seconds, self.deadline = seconds, deadline
        self.known: dict[tuple[Buffer, ...], Packing] = {}

    def pack(self, buffers: Sequence[Buffer]) -> Packing:
        start = min(b.lower for b in buffers)
        shape = tuple(
            replace(b, name="", lower=b.lower - start, upper=b.upper - start) for b in buffers
        )
        if shape not in self.known:
            left = max(0.0, min(self.seconds, self.deadline - time.perf_counter()))
            self.known[shape] = pack(shape, time_limit_seconds=left)
        return self.known[shape]
