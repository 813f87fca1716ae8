"""A pipeline over time: seconds of a step in closed form, and the simulated table of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.cluster import Cluster, Link
from ..ir.plan import Plan
from ..ir.schedule import SCHEDULES
from .collective import send_link, send_seconds
from .schedule import Event, simulate, stage_seconds

MOST_EVENTS = 20_000


def pipeline_seconds(
    busy: Sequence[float],
    sends: Sequence[float],
    micro_batches: int,
    chunks: int = 1,
    overlap: bool = False,
    sharing: float = 1.0,
) -> float:
    """1F1B of stages that are `busy` per micro-batch; `sends` over the boundary after each, one way.

    The first micro-batch passes every stage and boundary, the others follow one period apart: that
    of the slowest stage, or of the loop from a stage forth to the last and back, which has as many
    micro-batches in it as stages. `chunks` pieces per stage (interleaved) make the first pass
    shorter and send more often; `overlap` hides all sends but those of the first pass. Where `sharing`
    ranks have one processor, a stage is `busy` as long only while all are: while others wait it has
    more of the processor, which yet has the work of all to do.
    """
    if sharing > 1:
        alone = [work / sharing for work in busy]
        piped = pipeline_seconds(alone, sends, micro_batches, chunks, overlap)
        return max(piped, micro_batches * sum(busy) / len(busy))
    stages = len(busy)
    period = max(busy) if overlap else period_seconds(busy, sends, chunks)
    first = (sum(busy) - max(busy)) / chunks + 2 * sum(sends)
    return first + max(busy) + (micro_batches - 1) * period if stages > 1 else micro_batches * busy[0]


def period_seconds(busy: Sequence[float], sends: Sequence[float], chunks: int = 1) -> float:
    """From one micro-batch to the next: the slowest stage or loop, where sends are not hidden."""
    period, loop = max(busy), 0.0
    for count, (work, send) in enumerate(zip(reversed(busy), reversed(sends), strict=True), 1):
        loop += work + 2 * send * chunks
        period = max(period, loop / count)
    return period


def timeline(plan: Plan) -> tuple[Event, ...]:
    """Every forward and backward of one step; empty when there are very many."""
    count = len(plan.stages)
    if 2 * count * plan.micro_batches > MOST_EVENTS:
        return ()
    links = boundary_links(count, plan.cluster)
    sends = boundary_seconds([s.transfer_bytes for s in plan.stages], links)
    costs = [
        stage_seconds(stage.forward_seconds, stage.backward_seconds, onward, back)
        for stage, onward, back in zip(plan.stages, sends, [0.0, *sends[:-1]], strict=True)
    ]
    return simulate(SCHEDULES[plan.schedule](count, plan.micro_batches), costs).events


def boundary_links(stages: int, cluster: Cluster) -> list[Link]:
    """The link from each of so many equal stages to the next one."""
    stride = cluster.devices // stages
    return [send_link(number * stride, stride, cluster) for number in range(stages)]


def boundary_seconds(amounts: Sequence[int], links: Sequence[Link]) -> list[float]:
    """Seconds to send each stage's bytes to the next one."""
    known: dict[tuple[int, int], float] = {}
    found = []
    for amount, link in zip(amounts, links, strict=True):
        key = amount, id(link)
        if key not in known:
            known[key] = send_seconds(amount, link)
        found.append(known[key])
    return found
