"""Sections of time (MiniMalloc): the maximal sets of buffers that are live at once.

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
    """Buffer `i` of `size[i]` bytes is live in sections `first[i]` to `last[i] - 1` of `count`."""

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
        """Lower bound of the peak in bytes: the maximum of live bytes."""
        return int(self.loads().max(initial=0))

    def of(self, chosen: Ints) -> Sections:
        """These buffers alone, in the same sections."""
        return Sections(self.size[chosen], self.first[chosen], self.last[chosen], self.count)

    def components(self) -> list[Ints]:
        """Components: groups of buffers that share no time with one another."""
        order = np.argsort(self.first, kind="stable")
        reach = np.maximum.accumulate(self.last[order])
        boundaries = np.flatnonzero(self.first[order][1:] >= reach[:-1]) + 1
        return (
            [np.sort(component) for component in np.split(order, boundaries)] if len(order) else []
        )


def sections(buffers: Sequence[Buffer]) -> Sections:
    """Sections of a list of buffers: one at each start that is followed by an end."""
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
    points = times[np.array(tops, np.int64)]
    first = np.searchsorted(points, lower, "left").astype(np.int64)
    last = np.searchsorted(points, upper, "left").astype(np.int64)
    return Sections(size, first, last, len(points))
