"""A pipeline over time: seconds of a step in closed form, and the simulated table of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ...ir.plan.interleave import Rows, rows
from ...ir.plan.plan import Plan, Stage
from ..communication.stage_transfer import plan_hops
from .simulate import Event, Timeline, simulate_rows, stage_seconds

Ends = Sequence[tuple[float, float]]
MOST_EVENTS = 20_000


def pipeline_seconds(
    busy: Sequence[float],
    sends: Sequence[float],
    micro_batches: int,
    chunks: int = 1,
    overlap: bool = False,
    sharing: float = 1.0,
    ends: Ends = (),
) -> float:
    """1F1B of stages that are `busy` per micro-batch; `sends` over the boundary after each, one way.

    The first micro-batch passes every stage and boundary, the others follow one period apart: that
    of the slowest stage, or of the loop from a stage forth to the last and back, which has as many
    micro-batches in it as stages. With several pieces per stage (interleaved) less passes before and
    after a stage's own work, and sends are more: `chunks` pieces, equal ones unless `ends` says which
    parts of a stage's time its first and its last piece are. `overlap` hides all sends but those of the
    first pass. Where `sharing` ranks have one processor, a stage is `busy` as long only while all are:
    while others wait it has more of the processor, which yet has the work of all to do.
    """
    if sharing > 1:
        alone = [work / sharing for work in busy]
        piped = pipeline_seconds(alone, sends, micro_batches, chunks, overlap, ends=ends)
        return max(piped, micro_batches * sum(busy) / len(busy))
    if len(busy) == 1:
        return micro_batches * busy[0]
    period = max(busy) if overlap else period_seconds(busy, sends, chunks)
    beside = beside_seconds(busy, ends or [(1 / chunks, 1 / chunks)] * len(busy))
    worked = max(micro_batches * own + other for own, other in zip(busy, beside, strict=True))
    return worked + (micro_batches - 1) * (period - max(busy)) + 2 * sum(sends)


def beside_seconds(busy: Sequence[float], ends: Ends) -> list[float]:
    """For every stage, what others do of one micro-batch before its first piece and after its last one,
    in the first pieces of the stages before it and the last ones of those behind."""
    first = [work * share for work, (share, _) in zip(busy, ends, strict=True)]
    last = [work * share for work, (_, share) in zip(busy, ends, strict=True)]
    before = accumulate(first[:-1], initial=0.0)
    behind = list(accumulate(last[:0:-1], initial=0.0))[::-1]
    return [one + other for one, other in zip(before, behind, strict=True)]


def period_seconds(busy: Sequence[float], sends: Sequence[float], chunks: int = 1) -> float:
    """From one micro-batch to the next: the slowest stage or loop, where sends are not hidden."""
    period, loop = max(busy), 0.0
    for count, (work, send) in enumerate(zip(reversed(busy), reversed(sends), strict=True), 1):
        loop += work + 2 * send * chunks
        period = max(period, loop / count)
    return period


def timeline(plan: Plan) -> tuple[Event, ...]:
    """Every forward and backward of one step; empty when there are very many."""
    if 2 * len(plan.pieces) * plan.micro_batches > MOST_EVENTS:
        return ()
    sends = [hop.seconds for hop in plan_hops(plan)]
    busy = [(stage.forward_seconds, stage.backward_seconds) for stage in plan.stages]
    return simulated(plan, busy, sends).events


def simulated(plan: Plan, busy: Sequence[tuple[float, float]], sends: Sequence[float]) -> Timeline:
    """The plan's schedule event by event: stages are `busy` per micro-batch forward and backward, of
    which every piece has the part that its layers have of the stage's; `sends` as above."""
    costs = [
        [
            stage_seconds(forward * share, backward * share, onward, back)
            for share in piece_shares(plan, stage)
        ]
        for stage, (forward, backward), onward, back in zip(
            plan.stages, busy, sends, [sends[-1], *sends[:-1]], strict=True
        )
    ]
    return simulate_rows(rows_of(plan), costs)


def rows_of(plan: Plan) -> Rows:
    """Who does what in which order."""
    return rows(plan.schedule, len(plan.stages), plan.micro_batches, plan.chunks)


def piece_shares(plan: Plan, stage: Stage) -> list[float]:
    """The part of a stage's time that each of its pieces takes."""
    return shares(
        [
            sum(
                (x.forward_seconds + x.backward_seconds) * (x.last - x.first)
                for x in plan.layers
                if first <= x.first < last and not x.once
            )
            for first, last in stage.pieces
        ]
    )


def shares(each: Sequence[float]) -> list[float]:
    """The parts of a whole; equal ones of nothing."""
    whole = sum(each)
    return [part / whole for part in each] if whole else [1 / len(each)] * len(each)
