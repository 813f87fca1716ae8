"""Pipeline step time in closed form, and the simulated schedule of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ...ir.plan.groups.schedule import group_rows, tiles_of
from ...ir.plan.plan import Plan, Stage
from ...ir.plan.schedules.chunk_map import ScheduleRows
from ...ir.plan.schedules.registry import build_rows
from ..communication.stage_transfer import plan_transfers
from ..quantity import Number
from .group_pipeline import groups_step
from .scheduled import StageWork, simulate_schedule
from .simulate import ScheduleEvent, Timeline

EdgeShares = Sequence[tuple[float, float]]
MAX_EVENTS = 20_000


def pipeline_seconds(
    busy: Sequence[float],
    sends: Sequence[float],
    micro_batches: int,
    chunks: int = 1,
    overlap: bool = False,
    ranks_per_processor: float = 1.0,
    edge_shares: EdgeShares = (),
) -> float:
    """Seconds of 1F1B; `busy` seconds per micro-batch and stage, `sends` one way after each stage.

    The first micro-batch passes every stage and boundary, the others follow one period apart: that
    of the slowest stage, or of the loop from a stage to the last and back, which holds one
    micro-batch per stage. With `chunks` model chunks per stage (interleaved) the fill and drain are
    shorter and sends more; `edge_shares` are the fractions of stage time in its first and last
    chunk (default: equal). `overlap` hides all sends but those of the first pass. Where
    `ranks_per_processor` ranks share a processor, `busy` holds only while all work: a waiting rank
    leaves its time to the others."""
    if ranks_per_processor > 1:
        alone = [work / ranks_per_processor for work in busy]
        piped = pipeline_seconds(
            alone, sends, micro_batches, chunks, overlap, edge_shares=edge_shares
        )
        return max(piped, micro_batches * sum(busy) / len(busy))
    if len(busy) == 1:
        return micro_batches * busy[0]
    period = max(busy) if overlap else period_seconds(busy, sends, chunks)
    beside = fill_drain_seconds(busy, edge_shares or [(1 / chunks, 1 / chunks)] * len(busy))
    worked, waiting = steady_seconds(busy, beside, micro_batches, period)
    return worked + waiting + 2 * sum(sends)


def steady_seconds(
    busy: Sequence[Number], beside: Sequence[Number], micro_batches: Number, period: Number
) -> tuple[Number, Number]:
    """(Work with fill and drain of the stage where that is longest, waits of the busiest stage):
    `beside` seconds of fill and drain per stage, `period` between micro-batches."""
    worked = max(micro_batches * work + other for work, other in zip(busy, beside, strict=True))
    return worked, (micro_batches - 1) * (period - max(busy))


def fill_drain_seconds(busy: Sequence[float], edge_shares: EdgeShares) -> list[float]:
    """Seconds of pipeline fill and drain per stage: first chunks of earlier and last chunks of
    later stages, for one micro-batch."""
    first = [work * share for work, (share, _) in zip(busy, edge_shares, strict=True)]
    last = [work * share for work, (_, share) in zip(busy, edge_shares, strict=True)]
    before = accumulate(first[:-1], initial=0.0)
    behind = list(accumulate(last[:0:-1], initial=0.0))[::-1]
    return [one + other for one, other in zip(before, behind, strict=True)]


def period_seconds(busy: Sequence[float], sends: Sequence[float], chunks: int = 1) -> float:
    """Seconds between micro-batches: of the slowest stage or loop, with exposed sends."""
    period, loop = max(busy), 0.0
    for count, (work, send) in enumerate(zip(reversed(busy), reversed(sends), strict=True), 1):
        loop += work + 2 * send * chunks
        period = max(period, loop / count)
    return period


def timeline(plan: Plan) -> tuple[ScheduleEvent, ...]:
    """Every forward and backward of one step; empty above MAX_EVENTS."""
    if 2 * len(plan.model_chunks) * plan.micro_batches > MAX_EVENTS:
        return ()
    if plan.groups:
        return groups_step(plan).timeline.events
    sends = [transfer.seconds for transfer in plan_transfers(plan)]
    busy = [(stage.forward_seconds, stage.backward_seconds) for stage in plan.stages]
    return simulate_plan(plan, busy, sends).events


def simulate_plan(
    plan: Plan, busy: Sequence[tuple[float, float]], sends: Sequence[float]
) -> Timeline:
    """Simulate the plan's schedule; `busy`: (forward, backward) seconds per micro-batch and stage,
    split over model chunks by the times of their layers; `sends` as in `pipeline_seconds`."""
    work = [
        StageWork(forward, backward, stage.weights_share * backward, chunk_shares(plan, stage))
        for stage, (forward, backward) in zip(plan.stages, busy, strict=True)
    ]
    return simulate_schedule(plan.schedule, work, sends, plan.micro_batches)


def schedule_rows(plan: Plan) -> ScheduleRows:
    """Rows of the schedule: the steps of every stage in order."""
    if plan.groups:
        return group_rows(tiles_of(plan))
    return build_rows(plan.schedule, len(plan.stages), plan.micro_batches, plan.chunks_per_stage)


def chunk_shares(plan: Plan, stage: Stage) -> list[float]:
    """Fraction of a stage's time that each of its model chunks takes."""
    return fractions(
        [
            sum(
                (x.forward_seconds + x.backward_seconds) * (x.last - x.first)
                for x in plan.layers
                if first <= x.first < last and not x.batch_only
            )
            for first, last in stage.model_chunks
        ]
    )


def fractions(each: Sequence[float]) -> list[float]:
    """Amounts divided by their sum; equal fractions where the sum is zero."""
    total = sum(each)
    return [part / total for part in each] if total else [1 / len(each)] * len(each)
