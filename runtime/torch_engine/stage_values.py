"""Which values pass between the chunks of an exported module.

Chunk 0 makes the rotary angles that chunks 1 and 2 read: they leave chunk 0, and pass through chunk 1.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.fx import Graph, Node

from ...ir.errors import UsageError


class ChunkValues(NamedTuple):
    """Names of the values that a chunk reads, makes, receives and sends."""

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    arriving: tuple[str, ...]
    leaving: tuple[str, ...]


def chunk_values(graph: Graph) -> list[ChunkValues]:
    """The values of every chunk of a graph whose calls are the chunks, in order."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    arguments = [tuple(x.name for x in call.all_input_nodes) for call in calls]
    for call in calls:
        if any(x.op == "get_attr" for x in call.all_input_nodes):
            raise UsageError(
                "a value that is no parameter is read by several stages: plan without pp"
            )
    results = [tuple(_results(call)) for call in calls]
    (output,) = graph.find_nodes(op="output")
    ends = tuple(node.name for node in output.all_input_nodes)
    arriving = [_live(results[:i], [*arguments[i:], ends]) for i in range(len(calls))]
    rows = zip(arguments, results, arriving, (*arriving[1:], ends), strict=True)
    return [ChunkValues(*row) for row in rows]


def _results(call: Node) -> Iterator[str]:
    """The results of a chunk, in the order in which it gives them."""
    parts = [user for user in call.users if user.target is operator.getitem]
    if not parts:
        yield call.name
        return
    by_place = {int(part.args[1]): part.name for part in parts}  # pyright: ignore[reportArgumentType]
    yield from (by_place.get(i, f"{call.name}.{i}") for i in range(max(by_place) + 1))


def _live(before: Sequence[tuple[str, ...]], after: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Values that are made before a boundary and read after it."""
    read = {name for names in after for name in names}
    return tuple(name for names in before for name in names if name in read)
