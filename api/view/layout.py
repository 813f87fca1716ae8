"""Where boxes stand: a column per depth, a row per box of that depth. Deterministic."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from .report import Box, Edge, Graph


def arrange(boxes: Iterable[Box], edges: Iterable[Edge], views: int = 0) -> Graph:
    """A graph whose boxes stand as deep as their longest chain of sources.

    Boxes come in an order in which sources stand before their targets.
    """
    given = tuple(boxes)
    once = {(e.source, e.target): e for e in edges}
    kept = tuple(once[ends] for ends in sorted(once))
    depth = [0] * len(given)
    for edge in sorted(kept, key=lambda e: e.target):
        depth[edge.target] = max(depth[edge.target], depth[edge.source] + 1)
    taken: dict[int, int] = {}
    placed = []
    for box, column in zip(given, depth, strict=True):
        row = taken.get(column, 0)
        taken[column] = row + 1
        placed.append(replace(box, column=column, row=row))
    return Graph(tuple(placed), kept, views)
