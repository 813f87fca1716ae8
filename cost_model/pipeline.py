"""Event simulation of a plan's pipeline: who computes when, following the schedule's own table."""

from __future__ import annotations

from ..ir.plan import Plan
from ..ir.schedule import SCHEDULES
from .collective import collective_seconds

Row = tuple[int, str, int, float, float]  # stage, "F" or "B", micro-batch, start, end in seconds
MOST_EVENTS = 20_000


def timeline(plan: Plan) -> tuple[Row, ...]:
    """Every forward and backward of one step, in seconds from its start; empty when very many."""
    count = len(plan.stages)
    if 2 * count * plan.micro_batches > MOST_EVENTS:
        return ()
    stride = plan.mesh.size // count
    transfers = [
        float(collective_seconds("send", s.transfer_bytes, 2, stride, plan.cluster))
        if s.transfer_bytes else 0.0
        for s in plan.stages
    ]  # fmt: skip
    durations = [(s.forward_seconds, s.backward_seconds) for s in plan.stages]
    return simulate(plan.schedule, durations, transfers, plan.micro_batches)


def simulate(
    schedule: str,
    durations: list[tuple[float, float]],
    transfers: list[float],
    micro_batches: int,
) -> tuple[Row, ...]:
    """Run the table of a schedule: `durations` are (forward, backward) seconds per stage,
    `transfers[s]` the seconds between stage s and s + 1."""
    table = SCHEDULES[schedule](len(durations), micro_batches)
    done: dict[tuple[int, str, int], float] = {}
    clock, place = [0.0] * len(durations), [0] * len(durations)
    rows: list[Row] = []
    while any(place[s] < len(table[s]) for s in range(len(table))):
        before = len(rows)
        for stage, row in enumerate(table):
            while place[stage] < len(row):
                kind, micro = row[place[stage]]
                ready = _ready(stage, kind, micro, len(table), done, transfers)
                if ready is None:
                    break
                start = max(clock[stage], ready)
                end = start + durations[stage][kind == "B"]
                done[stage, kind, micro] = clock[stage] = end
                rows.append((stage, kind, micro, start, end))
                place[stage] += 1
        assert len(rows) > before, f"schedule {schedule} waits for itself"
    return tuple(rows)


def _ready(
    stage: int,
    kind: str,
    micro: int,
    stages: int,
    done: dict[tuple[int, str, int], float],
    transfers: list[float],
) -> float | None:
    """When the input of a slot is there, or None while it is not made."""
    if kind == "F":
        if stage == 0:
            return 0.0
        made = done.get((stage - 1, "F", micro))
        return None if made is None else made + transfers[stage - 1]
    if stage == stages - 1:
        return done.get((stage, "F", micro))
    made = done.get((stage + 1, "B", micro))
    return None if made is None else made + transfers[stage]
