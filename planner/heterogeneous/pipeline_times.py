"""What lines cost over time: each a pipeline, all of them adding up gradients in the end."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise

from msgspec.structs import replace

from ...cost_model.communication.collective import collective_seconds, send_seconds
from ...cost_model.pipeline.closed_form import pipeline_seconds
from ...cost_model.pipeline.simulate import simulate, stage_seconds
from ...ir.devices.cluster import Cluster, Link
from ...ir.devices.heterogeneous import Crew, Fleet, Line
from ...ir.plan.schedule import SCHEDULES


def sends(fleet: Fleet, crews: Sequence[Crew]) -> list[float]:
    """Seconds to send a micro-batch from every crew to the next one of its line, one way."""
    found = []
    for one, other in pairwise(crews):
        amount = one.stage.transfer_bytes * max(1.0, one.width / other.width)
        found.append(send_seconds(round(amount), link_between(fleet, one, other)))
    return [*found, 0.0]


def link_between(fleet: Fleet, one: Crew, other: Crew) -> Link:
    """The slowest link between two crews."""
    if one.part != other.part:
        return fleet.link
    end = max(one.first + one.width, other.first + other.width)
    return fleet.parts[one.part].joining(min(one.first, other.first), end - 1)


def line_seconds(fleet: Fleet, crews: Sequence[Crew], micro_batches: int) -> float:
    """A line's pipeline in closed form."""
    busy = [crew.stage.forward_seconds + crew.stage.backward_seconds for crew in crews]
    return pipeline_seconds(busy, sends(fleet, crews), micro_batches) if micro_batches else 0.0


def simulated(fleet: Fleet, line: Line) -> float:
    """A line's pipeline event by event (1F1B)."""
    ways = sends(fleet, line.crews)
    costs = [
        stage_seconds(crew.stage.forward_seconds, crew.stage.backward_seconds, onward, back)
        for crew, onward, back in zip(line.crews, ways, [0.0, *ways[:-1]], strict=True)
    ]
    table = SCHEDULES["1f1b"](len(line.crews), line.micro_batches)
    return simulate(table, costs).makespan_seconds


def shares(fleet: Fleet, rows: Sequence[Sequence[Crew]], micro_batches: int) -> list[int]:
    """Micro-batches of every line: one after the other goes where it ends first."""
    found = [0] * len(rows)
    ends = [(line_seconds(fleet, row, 1), n) for n, row in enumerate(rows)]
    heapify(ends)
    for _ in range(micro_batches):
        _, n = ends[0]
        found[n] += 1
        heapreplace(ends, (line_seconds(fleet, rows[n], found[n] + 1), n))
    return found


def sync_seconds(fleet: Fleet, rows: Sequence[Sequence[Crew]]) -> float:
    """Once per step: what crews do among themselves, then gradients added up over lines."""
    crews = [crew for row in rows for crew in row]
    own = max(crew.stage.sync_seconds for crew in crews)
    if len(rows) == 1:
        return own
    joined = Cluster("lines", fleet.parts[0].device, (replace(fleet.link, size=len(rows)),))
    held = max(share.bytes.trained for crew in crews for share in crew.stage.shares)
    return own + float(collective_seconds("all_reduce", held, len(rows), 1, joined))
