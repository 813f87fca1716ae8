"""A network with fewer labels: those that are kept, and only the layouts that they name."""

from __future__ import annotations

import numpy as np

from .labels import Ints
from .moves import Floats
from .network import End, Flow, Network


def restrict(network: Network, kept: list[Ints]) -> Network:
    """The network in which choice `c` has the labels `kept[c]`, in that order."""
    cut: dict[tuple[int, bytes, bytes], Floats] = {}
    return Network(
        tuple(s[k] for s, k in zip(network.seconds, kept, strict=True)),
        tuple(b[k] for b, k in zip(network.bytes, kept, strict=True)),
        tuple(p[k] for p, k in zip(network.parts, kept, strict=True)),
        tuple(_flow(flow, kept, cut) for flow in network.flows),
        network.memory_bytes,
    )


def _flow(flow: Flow, kept: list[Ints], cut: dict[tuple[int, bytes, bytes], Floats]) -> Flow:
    """Rows and columns that nobody names are dropped; equal cuts of one table stay one table."""
    rows, columns = flow.seconds.shape
    maker, used_rows = _used([flow.maker], kept, rows)
    users, used_columns = _used(list(flow.users), kept, columns)
    seconds = flow.seconds
    if len(used_rows) < rows or len(used_columns) < columns:
        key = (id(seconds), used_rows.tobytes(), used_columns.tobytes())
        if key not in cut:
            cut[key] = seconds[np.ix_(used_rows, used_columns)]
        seconds = cut[key]
    return Flow(seconds, maker[0], tuple(users))


def _used(ends: list[End], kept: list[Ints], count: int) -> tuple[list[End], Ints]:
    places = [end.place[kept[end.choice]] for end in ends]
    mark = np.zeros(count, dtype=bool)
    for place in places:
        mark[place] = True
    number = np.cumsum(mark) - 1
    made = [End(end.choice, number[p]) for end, p in zip(ends, places, strict=True)]
    return made, np.flatnonzero(mark)
