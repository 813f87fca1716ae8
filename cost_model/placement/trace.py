"""Trace of a simulated placement: operator runs, transfers, and bytes live on each device."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from ...ir.errors import FileError
from ...ir.plan.placement import Placement
from .arrays import graph_arrays
from .simulate import MODES, PlacedOperators, new_state, run_to_end


class OperatorRun(NamedTuple):
    """Run of an operator, by its id, on its device; microseconds."""

    operator: int
    device: int
    start_us: float
    end_us: float


class TensorTransfer(NamedTuple):
    """Transfer of the output of operator `source`; `last_us`: the last use of the copy."""

    source: int
    sender: int
    receiver: int
    bytes: float
    start_us: float
    end_us: float
    last_us: float


class MemorySpan(NamedTuple):
    """Live interval of bytes of one kind on a device."""

    device: int
    kind: str
    bytes: float
    start_us: float
    end_us: float


class PlacementTrace(NamedTuple):
    """Operators ordered by start, transfers ordered by edge."""

    runs: tuple[OperatorRun, ...]
    transfers: tuple[TensorTransfer, ...]
    makespan_us: float


def trace_placement(placement: Placement) -> PlacementTrace:
    """Simulate a placement under its link model and per-device order.

    Raises FileError for an order that deadlocks."""
    work = graph_arrays(placement.graph, placement.target)
    ids = work.operators["id"].tolist()
    device = np.array([placement.device[str(i)] for i in ids], np.int64)
    key, count = dict[int, float](), defaultdict[int, int](int)
    for operator in placement.order:
        home = placement.device[str(operator)]
        key[operator] = float(count[home])
        count[home] += 1
    state = new_state(work)
    placed = PlacedOperators(device, np.array([key[i] for i in ids]), True)
    span = run_to_end(work, placed, MODES[placement.link], state)
    if span == np.inf:
        raise FileError("$.order: devices wait for each other's operators for ever")
    times = zip(
        ids,
        device.tolist(),
        state.times["start"].tolist(),
        state.times["end"].tolist(),
        strict=True,
    )
    runs = tuple(sorted((OperatorRun(*row) for row in times), key=lambda r: (r.start_us, r.end_us)))
    sent: dict[tuple[int, int], TensorTransfer] = {}
    for source, target, tensor, size, _ in work.edges.tolist():
        home, away, end = (
            int(device[source]),
            int(device[target]),
            float(state.times["end"][target]),
        )
        if home != away:
            send, arrive = state.slots[tensor, away].tolist()
            first = TensorTransfer(ids[source], home, away, size, send, arrive, end)
            known = sent.setdefault((tensor, away), first)
            sent[tensor, away] = known._replace(last_us=max(known.last_us, end))
    return PlacementTrace(runs, tuple(sent.values()), float(span))


def memory_spans(placement: Placement, execution: PlacementTrace) -> list[MemorySpan]:
    """Live intervals on all devices under the placement's memory rule."""
    nodes = {node.id: node for node in placement.graph.nodes}
    keeps_all = placement.memory_rule == "train"
    end, last_use = execution.makespan_us, _last_uses(placement, execution)
    intervals: list[MemorySpan] = []
    for r in execution.runs:
        node, d = nodes[r.operator], r.device
        intervals += [
            MemorySpan(d, "persistent", node.mem_persistent, 0.0, end),
            MemorySpan(
                d,
                "outputs",
                node.mem_output,
                r.start_us,
                end if keeps_all else last_use[r.operator],
            ),
            MemorySpan(d, "temporaries", node.mem_temporary, r.start_us, r.end_us),
        ]
    intervals += [
        MemorySpan(
            t.receiver, "received copies", t.bytes, t.start_us, end if keeps_all else t.last_us
        )
        for t in execution.transfers
    ]
    return [span for span in intervals if span.bytes]


def _last_uses(placement: Placement, execution: PlacementTrace) -> dict[int, float]:
    """Last use of every operator's output on its own device, in microseconds."""
    ends = {r.operator: r.end_us for r in execution.runs}
    last_use = dict(ends)
    for edge in placement.graph.edges:
        if placement.device[str(edge.src)] == placement.device[str(edge.dst)]:
            last_use[edge.src] = max(last_use[edge.src], ends[edge.dst])
    for t in execution.transfers:
        last_use[t.source] = max(last_use[t.source], t.end_us)
    return last_use


def memory_levels(intervals: list[MemorySpan], device: int) -> list[tuple[float, float]]:
    """(microseconds, bytes) at every change of a device's live bytes; frees come before
    allocations."""
    change: dict[float, float] = defaultdict(float)
    for span in intervals:
        if span.device == device:
            change[span.start_us] += span.bytes
            change[span.end_us] -= span.bytes
    level = 0.0
    points: list[tuple[float, float]] = []
    for when in sorted(change):
        level += change[when]
        points.append((when, level))
    return points


def parts_at_peak(intervals: list[MemorySpan], device: int, keeps_all: bool) -> dict[str, float]:
    """Bytes by kind at a device's peak; `keeps_all`: all outputs at once plus the largest
    temporary, as the `train` rule counts."""
    mine = [span for span in intervals if span.device == device]
    parts: dict[str, float] = dict.fromkeys(
        ("persistent", "outputs", "received copies", "temporaries"), 0.0
    )
    points = memory_levels(mine, device)
    peak = max(points, key=lambda point: point[1])[0] if points else 0.0
    for span in mine:
        if keeps_all and span.kind == "temporaries":
            parts[span.kind] = max(parts[span.kind], span.bytes)
        elif keeps_all or span.start_us <= peak < span.end_us:
            parts[span.kind] += span.bytes
    return parts
