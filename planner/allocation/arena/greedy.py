"""First fit: buffer after buffer into the lowest gap that is free for all its life."""

from __future__ import annotations

import numpy as np
from numba import njit

from .sections import Ints, Sections


@njit(cache=True)
def first_fit(size, first, last, order):
    """Offsets when buffers are placed in this order."""
    n = len(order)
    offset = np.zeros(n, np.int64)
    placed = np.empty(n, np.int64)  # lowest offset first
    for k in range(n):
        i = order[k]
        at = 0
        for p in range(k):
            j = placed[p]
            if first[j] < last[i] and first[i] < last[j]:
                if offset[j] - at >= size[i]:
                    break
                at = max(at, offset[j] + size[j])
        offset[i] = at
        p = k
        while p > 0 and offset[placed[p - 1]] > at:
            placed[p] = placed[p - 1]
            p -= 1
        placed[p] = i
    return offset


def orders(part: Sections) -> list[Ints]:
    """Orders worth trying: by length, area, crowding and size, biggest first, and by time."""
    width = part.last - part.first
    area, crowd = width * part.size, crowding(part)
    keys = ((width, area), (area, crowd), (crowd, area), (crowd, width), (part.size, width))
    falling = [np.lexsort((-second, -lead)) for lead, second in keys]
    return [*falling, np.lexsort((-width, part.first)), np.lexsort((part.first, -part.last))]


def crowding(part: Sections) -> Ints:
    """Per buffer, the most bytes live at once during its life."""
    loads = part.loads()
    return np.array(
        [loads[a:b].max() for a, b in zip(part.first, part.last, strict=True)], np.int64
    )


def height(part: Sections, offset: Ints) -> int:
    return int((offset + part.size).max(initial=0))


def greedy(part: Sections) -> Ints:
    """The lowest of the first fits."""
    found = [first_fit(part.size, part.first, part.last, order) for order in orders(part)]
    return min(found, key=lambda offset: height(part, offset))
