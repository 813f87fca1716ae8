"""What an engine's host and overlaps add to a call, and how its pipeline sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Plan
from ...ir.plan.workload import CallWork
from ..communication.overlap import AxisSeconds, beside_operators, exposed_seconds
from ..execution_model import GENERATED, engine_execution
from ..quantity import amount
from .term import Term, priced_term

LAUNCHES = "assumed: seconds of the engine's host for every operator (its execution model)"
STALLS = "assumed: what the engine's host does between experts (its execution model)"
BESIDE = "derived: what collectives and compute share, as the engine runs them"


class EnginePipeline(NamedTuple):
    """Model chunks per stage, and whether sends run beside compute."""

    chunks: int
    hides_sends: bool


def pipeline_of(plan: Plan) -> EnginePipeline:
    """How a plan's engine runs its pipeline."""
    execution = engine_execution(plan.engine)
    if execution is None:
        return EnginePipeline(plan.chunks_per_stage, False)
    chunks = max(plan.chunks_per_stage, execution.chunks)
    return EnginePipeline(chunks, "transfers" in execution.overlaps)


def engine_terms(
    engine: str,
    half: CallWork,
    work: Sequence[Term],
    sent: Sequence[Term],
    times: int,
    cluster: Cluster,
) -> Iterator[Term]:
    """Beside the operators and collectives of forward or backward, `times` times: waits for the host
    where it launches more slowly than the device computes, stalls, and collectives beside compute."""
    if not times:
        return
    computed = sum(term.value for term in work) / times
    total = sum(term.value for term in sent) / times
    sends = [
        AxisSeconds(c.kind, c.axis, term.value / times / c.count, c.count)
        for c, term in zip(half.collectives, sent, strict=True)
    ]
    execution = engine_execution(engine)
    if execution is None:
        beside = beside_operators(sends, GENERATED, cluster)
        if beside:
            yield _beside_term(computed, beside, times)
        return
    beside = beside_operators(sends, execution, cluster)
    launched = half.launch_seconds - total
    if execution.blocks_launches:
        launched = computed + half.launch_seconds
    waits = max(0.0, launched - computed)
    busy, count = computed + waits + half.stall_seconds, amount("n", times)
    yield priced_term("waits for launches", count * amount("l", waits), LAUNCHES)
    yield priced_term("stalls of experts", count * amount("l_e", half.stall_seconds), STALLS)
    yield _beside_term(busy, beside, times)


def _beside_term(compute: float, beside: float, times: int) -> Term:
    """What is saved where collectives run beside compute, `times` times: a negative term."""
    hidden = exposed_seconds(compute, beside) - beside
    return priced_term(
        "collectives beside compute", amount("n", times) * amount("h", hidden), BESIDE
    )
