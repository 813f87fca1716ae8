"""Where boxes stand: a column per depth, a row per box of that depth. Deterministic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from .report import Box, BoxGraph, Edge

SWEEPS = 4


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
    row = _rows(depth, distinct)
    placed = (
        replace(box, column=column, row=row[i])
        for i, (box, column) in enumerate(zip(all_boxes, depth, strict=True))
    )
    return BoxGraph(tuple(placed), distinct, views)


def _rows(depth: Sequence[int], edges: Sequence[Edge]) -> list[int]:
    """The row of every box in its column: near the middle of those that it reads, then of those that
    read it (Sugiyama's barycentres), so that few edges cross."""
    columns: dict[int, list[int]] = defaultdict(list)
    ends: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for i, column in enumerate(depth):
        columns[column].append(i)
    for edge in edges:
        ends[0][edge.target].append(edge.source)
        ends[1][edge.source].append(edge.target)
    at = [0.0] * len(depth)

    def spread(column: list[int]) -> None:
        for row, i in enumerate(column):
            at[i] = row - len(column) / 2

    for column in columns.values():
        spread(column)
    for sweep in range(SWEEPS):
        near = ends[sweep % 2]
        for number in sorted(columns, reverse=sweep % 2 == 1):
            middle = {
                i: sum(at[e] for e in near[i]) / len(near[i]) if near[i] else at[i]
                for i in columns[number]
            }
            columns[number].sort(key=lambda i, middle=middle: (middle[i], i))
            spread(columns[number])
    row = [0] * len(depth)
    for column in columns.values():
        for number, i in enumerate(column):
            row[i] = number
    return row
