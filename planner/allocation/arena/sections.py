"""Time cut into sections: the moments at which a set of buffers is live that no other set contains.

buffers   aaaaaaaa          two buffers meet in time exactly if they meet in a section, and
             bbbbbbbbb      the largest sum over sections bounds the height of every arena
sections     |       |
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ....ir.plan.allocation import Buffer

Ints = NDArray[np.int64]


class Sections(msgspec.Struct, frozen=True):
    """Buffer `i` is live in sections `first[i]` up to, not including, `last[i]` of `count`."""

    size: Ints
    first: Ints
    last: Ints
    count: int

    def loads(self) -> Ints:
        """Bytes live in each section."""
        change = np.zeros(self.count + 1, np.int64)
        np.add.at(change, self.first, self.size)
        np.subtract.at(change, self.last, self.size)
        return np.cumsum(change)[:-1]

    def bound(self) -> int:
        """Bytes below which no arena can stay: the most that is live at once."""
        return int(self.loads().max(initial=0))

    def of(self, chosen: Ints) -> Sections:
        """These buffers alone, in the same sections."""
        return Sections(self.size[chosen], self.first[chosen], self.last[chosen], self.count)

    def parts(self) -> list[Ints]:
        """Groups of buffers that share no moment with one another: each may be packed alone."""
        order = np.argsort(self.first, kind="stable")
        reach = np.maximum.accumulate(self.last[order])
        cuts = np.flatnonzero(self.first[order][1:] >= reach[:-1]) + 1
        return [np.sort(part) for part in np.split(order, cuts)] if len(order) else []


def sections(buffers: Sequence[Buffer]) -> Sections:
    """Sections of a list of buffers: one where the last start before an end lies."""
    lower = np.array([b.lower for b in buffers], np.int64)
    upper = np.array([b.upper for b in buffers], np.int64)
    size = np.array([b.size for b in buffers], np.int64)
    times = np.unique(np.concatenate([lower, upper]))
    starts, ends = np.isin(times, lower), np.isin(times, upper)
    tops: list[int] = []  # starts that are followed by an end before any other start
    candidate = -1
    for i in range(len(times)):
        if ends[i] and candidate >= 0:
            tops.append(candidate)
            candidate = -1
        if starts[i]:
            candidate = i
    moments = times[np.array(tops, np.int64)]
    first = np.searchsorted(moments, lower, "left").astype(np.int64)
    last = np.searchsorted(moments, upper, "left").astype(np.int64)
    return Sections(size, first, last, len(moments))
