"""First fit: place buffers in order, each in the lowest gap free during its lifetime."""

from __future__ import annotations

import numpy as np

from ....cost_model.compiled import compiled
from .sections import Ints, Sections


@compiled
def first_fit(size: Ints, first: Ints, last: Ints, order: Ints) -> Ints:
    """Offsets (bytes) when buffers are placed in this order."""
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


def orders(component: Sections) -> list[Ints]:
    """Orders to try: by lifetime, area, crowding and size, largest first, and by time."""
    width = component.last - component.first
    area, crowd = width * component.size, crowding(component)
    keys = ((width, area), (area, crowd), (crowd, area), (crowd, width), (component.size, width))
    falling = [np.lexsort((-second, -lead)) for lead, second in keys]
    return [
        *falling,
        np.lexsort((-width, component.first)),
        np.lexsort((component.first, -component.last)),
    ]


def crowding(component: Sections) -> Ints:
    """Per buffer, the most bytes live at once during its life."""
    loads = component.loads()
    return np.array(
        [loads[a:b].max() for a, b in zip(component.first, component.last, strict=True)], np.int64
    )


def height(component: Sections, offset: Ints) -> int:
    return int((offset + component.size).max(initial=0))


def greedy(component: Sections) -> Ints:
    """Offsets of the lowest first fit over all `orders`."""
    offsets = [
        first_fit(component.size, component.first, component.last, order)
        for order in orders(component)
    ]
    return min(offsets, key=lambda offset: height(component, offset))
