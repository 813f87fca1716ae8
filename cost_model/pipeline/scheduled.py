"""Seconds of a pipeline under any schedule, by simulation of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.plan.schedules.chunk_map import ChunkMap
from ...ir.plan.schedules.registry import build_rows, chunk_map, splits_backward
from .makespan import task_order
from .simulate import StageSeconds, Timeline, simulate_rows

EXACT = 4  # times as many micro-batches as stages: longer steps repeat what shorter ones do
CLOSED_FORMS = ("1f1b", "interleaved")
ROUNDING = 1e-9  # part of a lower bound that sums in another order may differ by


class StageWork(NamedTuple):
    """Seconds of a stage per micro-batch; `weights`: the part of backward that nothing waits for;
    `shares`: the fractions of them in each of its model chunks."""

    forward: float
    backward: float
    weights: float
    shares: Sequence[float]

    def slower(self, times: float) -> StageWork:
        """The same work in so many times the seconds."""
        return StageWork(
            self.forward * times, self.backward * times, self.weights * times, self.shares
        )

    def chunk_seconds(self, chunk: int, onward: float, back: float) -> StageSeconds:
        """Seconds of one of its chunks, and to send to the next chunk and to the one before."""
        share = self.shares[chunk]
        inputs = max(self.backward - self.weights, 0.0)
        parts = {"F": self.forward, "B": self.backward, "I": inputs, "W": self.weights}
        compute = {kind: seconds * share for kind, seconds in parts.items()}
        return StageSeconds(compute, {"F": onward, "B": back})


def simulate_schedule(
    schedule: str, work: Sequence[StageWork], sends: Sequence[float], micro_batches: int
) -> Timeline:
    """Every step of a schedule; `sends`: seconds one way from each stage to the next one."""
    stages, chunks = len(work), len(work[0].shares)
    placed = chunk_map(schedule, stages, chunks)
    rows = build_rows(schedule, stages, micro_batches, chunks)
    return simulate_rows(rows, _costs(work, sends, placed), placed)


def scheduled_seconds(
    schedule: str,
    work: Sequence[StageWork],
    sends: Sequence[float],
    micro_batches: int,
    ranks_per_processor: float = 1.0,
) -> float:
    """Seconds of all micro-batches under a schedule. Of many micro-batches, some are simulated, and the
    others take as long each as the last of those do. Ranks that share a processor as in
    `pipeline_seconds`."""
    stages = len(work)
    if ranks_per_processor > 1:
        alone, busy = _of_one_processor(work, ranks_per_processor)
        least = passes(schedule, work, micro_batches) * busy
        return max(scheduled_seconds(schedule, alone, sends, micro_batches), least)
    if micro_batches <= EXACT * stages:
        return _makespan_seconds(schedule, work, sends, micro_batches)
    most, fewer = EXACT * stages, (EXACT - 1) * stages
    long, short = (_makespan_seconds(schedule, work, sends, n) for n in (most, fewer))
    seconds = long + (micro_batches - most) * (long - short) / stages
    return max(seconds, least_scheduled_seconds(schedule, work, sends, micro_batches))


def _of_one_processor(work: Sequence[StageWork], ranks: float) -> tuple[list[StageWork], float]:
    """Of stages that share a processor, `ranks` on each: what each takes alone, and the seconds of a
    micro-batch that a processor is busy."""
    busy = sum(one.forward + one.backward for one in work) / len(work)
    return [one.slower(1 / ranks) for one in work], busy


def passes(schedule: str, work: Sequence[StageWork], micro_batches: int) -> int:
    """How many of the micro-batches run each chunk of a stage."""
    return chunk_map(schedule, len(work), len(work[0].shares)).passes(micro_batches)


def least_scheduled_seconds(
    schedule: str,
    work: Sequence[StageWork],
    sends: Sequence[float],
    micro_batches: int,
    ranks_per_processor: float = 1.0,
) -> float:
    """A lower bound of `scheduled_seconds`, without a simulation: a stage begins when the first
    micro-batch reaches it, does all of its work, and after the last gradient that it sends those of the
    stages before it follow."""
    stages, chunks = len(work), len(work[0].shares)
    if ranks_per_processor > 1:
        alone, busy = _of_one_processor(work, ranks_per_processor)
        least = least_scheduled_seconds(schedule, alone, sends, micro_batches)
        return max(least, passes(schedule, work, micro_batches) * busy * (1 - ROUNDING))
    placed = chunk_map(schedule, stages, chunks)
    if placed.mirrored:  # either end begins at once
        busiest = max(one.forward + one.backward for one in work)
        return placed.passes(micro_batches) * busiest * (1 - ROUNDING)
    costs, kind = _costs(work, sends, placed), "I" if splits_backward(schedule) else "B"
    arrives, follows, least, reached = 0.0, 0.0, 0.0, set[int]()
    places = [placed.place(number) for number in range(placed.total)]
    for (stage, chunk), onward in zip(places, [*places[1:], None], strict=True):
        one, cost = work[stage], costs[stage][chunk]
        if stage not in reached:
            reached.add(stage)
            whole, waits = one.forward + one.backward, one.weights if kind == "I" else 0.0
            after = max(micro_batches * whole, micro_batches * (whole - waits) + follows)
            least = max(least, arrives + after)
        if onward is not None and onward.stage != stage:
            arrives += cost.transfer["F"]
            follows += costs[onward.stage][onward.chunk].transfer["B"]
        arrives += cost.compute["F"]
        follows += cost.compute[kind]
    return least * (1 - ROUNDING)


def _makespan_seconds(
    schedule: str, work: Sequence[StageWork], sends: Sequence[float], micro_batches: int
) -> float:
    """That of `simulate_schedule`."""
    stages, chunks = len(work), len(work[0].shares)
    costs = _costs(work, sends, chunk_map(schedule, stages, chunks))
    return task_order(schedule, stages, micro_batches, chunks).makespan_seconds(costs)


def _costs(
    work: Sequence[StageWork], sends: Sequence[float], placed: ChunkMap
) -> list[list[StageSeconds]]:
    """Costs by stage and chunk; where chunks run either way, so do their transfers."""
    costs: list[list[StageSeconds]] = []
    for stage, one in enumerate(work):
        onward, back = sends[stage], sends[stage - 1]
        directions = [(onward, back), (back, onward) if placed.turned(1) else (onward, back)]
        costs.append(
            [one.chunk_seconds(chunk, *directions[chunk % 2]) for chunk in range(placed.chunks)]
        )
    return costs
