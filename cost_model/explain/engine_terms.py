"""What an engine's host and overlaps add to a call, and how its pipeline sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...ir.plan.plan import Plan
from ...ir.plan.workload import CallWork
from ..communication.overlap import exposed_seconds
from ..execution_model import engine_execution
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
    engine: str, half: CallWork, work: Sequence[Term], sent: Sequence[Term], times: int
) -> Iterator[Term]:
    """Beside the operators and collectives of forward or backward, `times` times: waits for the host
    where it launches more slowly than the device computes, stalls, and collectives beside compute."""
    execution = engine_execution(engine)
    if execution is None or not times:
        return
    computed = sum(term.value for term in work) / times
    beside = total = 0.0
    for collective, term in zip(half.collectives, sent, strict=True):
        share = execution.tensor_share if collective.axis == "tp" else 1.0
        total += term.value / times
        beside += share * term.value / times * (collective.axis in execution.overlaps)
    launched = half.launch_seconds - total
    if execution.blocks_launches:
        launched = computed + half.launch_seconds
    waits = max(0.0, launched - computed)
    busy, count = computed + waits + half.stall_seconds, amount("n", times)
    yield priced_term("waits for launches", count * amount("l", waits), LAUNCHES)
    yield priced_term("stalls of experts", count * amount("l_e", half.stall_seconds), STALLS)
    hidden = exposed_seconds(busy, beside) - beside
    yield priced_term("collectives beside compute", count * amount("h", hidden), BESIDE)
