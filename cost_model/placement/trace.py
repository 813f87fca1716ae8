"""How a placement runs, as simulated: when operators start, what is sent when, what devices hold."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from ...ir.errors import FileError
from ...ir.placement import Placement
from .arrays import work_of
from .simulate import MODES, begin, new_state, run


class Run(NamedTuple):
    """An operator, by its id, on its device; microseconds."""

    operator: int
    device: int
    start_us: float
    end_us: float


class Transfer(NamedTuple):
    """A tensor that operator `source` made on its way to another device; `last_us`: its last use."""

    source: int
    sender: int
    receiver: int
    bytes: float
    start_us: float
    end_us: float
    last_us: float


class Span(NamedTuple):
    """Bytes of one kind that a device holds for a while."""

    device: int
    kind: str
    bytes: float
    start_us: float
    end_us: float


class Execution(NamedTuple):
    """Operators in the order of their start, and transfers in the order of their edges."""

    runs: tuple[Run, ...]
    transfers: tuple[Transfer, ...]
    makespan_us: float


def execute(placement: Placement) -> Execution:
    """Simulate a placement under its link model; every device keeps to the placement's order.

    Raises FileError for an order in which nothing can run."""
    work = work_of(placement.graph, placement.target)
    ids = work.operators["id"].tolist()
    device = np.array([placement.device[str(i)] for i in ids], np.int64)
    key, count = dict[int, float](), defaultdict[int, int](int)
    for operator in placement.order:
        home = placement.device[str(operator)]
        key[operator] = float(count[home])
        count[home] += 1
    state, nothing = new_state(work), np.zeros(len(ids))
    begin(work, state)
    span = run(
        work,
        device,
        np.array([key[i] for i in ids]),
        True,
        MODES[placement.link],
        state,
        nothing,
        np.inf,
        np.inf,
    )
    if span == np.inf:
        raise FileError("$.order: devices wait for each other's operators for ever")
    times = zip(
        ids,
        device.tolist(),
        state.times["start"].tolist(),
        state.times["end"].tolist(),
        strict=True,
    )
    runs = tuple(sorted((Run(*row) for row in times), key=lambda r: (r.start_us, r.end_us)))
    sent: dict[tuple[int, int], Transfer] = {}
    for source, target, tensor, size, _ in work.edges.tolist():
        home, away, end = (
            int(device[source]),
            int(device[target]),
            float(state.times["end"][target]),
        )
        if home != away:
            send, arrive = state.slots[tensor, away].tolist()
            first = Transfer(ids[source], home, away, size, send, arrive, end)
            known = sent.setdefault((tensor, away), first)
            sent[tensor, away] = known._replace(last_us=max(known.last_us, end))
    return Execution(runs, tuple(sent.values()), float(span))


def spans(placement: Placement, execution: Execution) -> list[Span]:
    """What devices hold and when, under the placement's memory rule."""
    nodes = {node.id: node for node in placement.graph.nodes}
    whole = placement.memory_rule == "train"
    end, kept = execution.makespan_us, _last_uses(placement, execution)
    found = []
    for r in execution.runs:
        node, d = nodes[r.operator], r.device
        found += [
            Span(d, "persistent", node.mem_persistent, 0.0, end),
            Span(d, "outputs", node.mem_output, r.start_us, end if whole else kept[r.operator]),
            Span(d, "temporaries", node.mem_temporary, r.start_us, r.end_us),
        ]
    found += [
        Span(t.receiver, "received copies", t.bytes, t.start_us, end if whole else t.last_us)
        for t in execution.transfers
    ]
    return [span for span in found if span.bytes]


def _last_uses(placement: Placement, execution: Execution) -> dict[int, float]:
    """Until when every operator's output is needed where it was made."""
    ends = {r.operator: r.end_us for r in execution.runs}
    kept = dict(ends)
    for edge in placement.graph.edges:
        if placement.device[str(edge.src)] == placement.device[str(edge.dst)]:
            kept[edge.src] = max(kept[edge.src], ends[edge.dst])
    for t in execution.transfers:
        kept[t.source] = max(kept[t.source], t.end_us)
    return kept


def levels(held: list[Span], device: int) -> list[tuple[float, float]]:
    """(microseconds, bytes) wherever the bytes on a device change; what goes makes room first."""
    change: dict[float, float] = defaultdict(float)
    for span in held:
        if span.device == device:
            change[span.start_us] += span.bytes
            change[span.end_us] -= span.bytes
    level, points = 0.0, []
    for when in sorted(change):
        level += change[when]
        points.append((when, level))
    return points


def parts_at_peak(held: list[Span], device: int, whole: bool) -> dict[str, float]:
    """Bytes by kind when a device holds most; `whole`: everything at once, and the largest temporary
    on top, as the `train` rule counts."""
    mine = [span for span in held if span.device == device]
    parts = dict.fromkeys(("persistent", "outputs", "received copies", "temporaries"), 0.0)
    points = levels(mine, device)
    peak = max(points, key=lambda point: point[1])[0] if points else 0.0
    for span in mine:
        if whole and span.kind == "temporaries":
            parts[span.kind] = max(parts[span.kind], span.bytes)
        elif whole or span.start_us <= peak < span.end_us:
            parts[span.kind] += span.bytes
    return parts
