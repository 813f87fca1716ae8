"""Where boxes stand: a column per depth, a row per box of that depth. Deterministic."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from .report import Box, BoxGraph, Edge


def arrange(boxes: Iterable[Box], edges: Iterable[Edge], views: int = 0) -> BoxGraph:
    """A graph whose boxes stand as deep as their longest chain of sources.

    Boxes come in an order in which sources stand before their targets.
    """
    all_boxes = tuple(boxes)
    by_ends = {(e.source, e.target): e for e in edges}
    distinct = tuple(by_ends[ends] for ends in sorted(by_ends))
    depth = [0] * len(all_boxes)
    for edge in sorted(distinct, key=lambda e: e.target):
        depth[edge.target] = max(depth[edge.target], depth[edge.source] + 1)
    rows: dict[int, int] = {}
    placed: list[Box] = []
    for box, column in zip(all_boxes, depth, strict=True):
        row = rows.get(column, 0)
        rows[column] = row + 1
        placed.append(replace(box, column=column, row=row))
    return BoxGraph(tuple(placed), distinct, views)
