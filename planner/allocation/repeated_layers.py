"""Two-level packing for repeated layers (MEMO, SIGMOD 2025).

Buffers that live inside one segment of the step are packed on their own and become one block; equal
segments share their packing. The blocks and all longer-lived buffers are then packed together, so
the work grows with distinct segments, not with depth. A block occupies its height as long as its
segment runs; where that would exceed the bound, near the peak, the buffers are packed individually.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from ...ir.plan.allocation import Buffer, Packing
from ..question.deadline import Deadline
from .arena import pack
from .arena.pack import status_of
from .arena.sections import Ints, sections


def pack_repeated(
    buffers: Sequence[Buffer],
    segment_starts: Sequence[int],
    capacity_bytes: int | None = None,
    *,
    time_limit_seconds: float = 10.0,
    minimise: bool = False,
) -> Packing:
    """Offsets (bytes) of all buffers; `segment_starts`: ascending times at which segments begin.

    Stops at a peak within the capacity unless `minimise`. Where the blocks do not reach the lower
    bound, first fit over all buffers is tried too and the lower peak is taken. Each distinct
    segment gets up to a tenth of the time, the blocks the remainder.
    """
    bound = sections(buffers).bound()
    goal = None if minimise else capacity_bytes
    offsets = block_offsets(buffers, segment_starts, time_limit_seconds, goal)
    peak = max((b.size + at for b, at in zip(buffers, offsets, strict=True)), default=0)
    if peak > max(bound, goal or 0):
        flat = pack(buffers, time_limit_seconds=0.0)
        if flat.peak_bytes < peak:
            offsets, peak = flat.offsets, flat.peak_bytes
    return Packing(offsets, peak, bound, status_of(peak, bound, capacity_bytes))


def block_offsets(
    buffers: Sequence[Buffer],
    segment_starts: Sequence[int],
    time_limit_seconds: float,
    goal_bytes: int | None = None,
) -> tuple[int, ...]:
    """Offsets (bytes) with one block per segment; stops at a peak of `goal_bytes`."""
    segments: dict[int, list[int]] = defaultdict(list)
    long_lived: list[int] = []
    for i, b in enumerate(buffers):
        segment = bisect_right(segment_starts, b.lower)
        inside = segment < len(segment_starts) and b.upper <= segment_starts[segment]
        (segments[segment] if inside else long_lived).append(i)
    deadline = Deadline(time_limit_seconds)
    segment_packer = _SegmentPacker(time_limit_seconds / 10, deadline)
    packed = {
        p: segment_packer.pack([buffers[i] for i in members]) for p, members in segments.items()
    }
    too_high = _too_high(
        buffers,
        segment_starts,
        {p: packing.peak_bytes for p, packing in packed.items()},
        long_lived,
    )
    for p in too_high:
        long_lived += segments.pop(p)
        del packed[p]
    tops = [
        Buffer("", segment_starts[p - 1], segment_starts[p], packing.peak_bytes)
        for p, packing in packed.items()
    ]
    blocks_and_long_lived = [*tops, *(buffers[i] for i in long_lived)]
    outer = pack(blocks_and_long_lived, goal_bytes, time_limit_seconds=deadline.seconds_left)
    offsets = dict(zip(long_lived, outer.offsets[len(tops) :], strict=True))
    for base, (p, packing) in zip(outer.offsets, packed.items(), strict=False):
        offsets |= {i: base + at for i, at in zip(segments[p], packing.offsets, strict=True)}
    return tuple(offsets[i] for i in range(len(buffers)))


def _too_high(
    buffers: Sequence[Buffer],
    segment_starts: Sequence[int],
    heights: dict[int, int],
    long_lived: Sequence[int],
) -> list[int]:
    """Segments whose blocks, on top of the long-lived buffers, would exceed the bound."""
    loads = live_bytes([buffers[i] for i in long_lived], segment_starts[-1])
    bound = int(live_bytes(buffers, segment_starts[-1]).max(initial=0))
    return [
        p
        for p, top in heights.items()
        if top + loads[segment_starts[p - 1] : segment_starts[p]].max() > bound
    ]


def live_bytes(buffers: Sequence[Buffer], end: int) -> Ints:
    """Bytes live at each time before `end`: [end]."""
    change = np.zeros(end + 1, np.int64)
    for b in buffers:
        change[b.lower] += b.size
        change[min(b.upper, end)] -= b.size
    return np.cumsum(change)[:-1]


class _SegmentPacker:
    """Packs segments, equal ones once (equal sizes and lifetimes relative to the start)."""

    def __init__(self, seconds: float, deadline: Deadline) -> None:
        self.seconds, self.deadline = seconds, deadline
        self.packings: dict[tuple[Buffer, ...], Packing] = {}

    def pack(self, buffers: Sequence[Buffer]) -> Packing:
        start = min(b.lower for b in buffers)
        shape = tuple(
            replace(b, name="", lower=b.lower - start, upper=b.upper - start) for b in buffers
        )
        if shape not in self.packings:
            seconds_left = min(self.seconds, self.deadline.seconds_left)
            self.packings[shape] = pack(shape, time_limit_seconds=seconds_left)
        return self.packings[shape]
