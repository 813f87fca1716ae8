"""Plans as JSON data, and the Pareto front of several as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...ir.plan.plan import Plan
from ...ir.text.units import seconds


def pareto_row(plan: Plan) -> dict[str, Any]:
    """A plan of the Pareto front, under the names of `plait plan --front --json`."""
    peak = plan.peak_bytes
    return {
        "global_batch": plan.global_batch,
        "samples_per_s": plan.prediction.samples_per_second,
        "step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "word": plan.strategy_text,
        "micro_batches": plan.micro_batches,
        "fits": plan.fits,
    }


def pareto_table(plans: list[Plan]) -> Iterator[str]:
    """The Pareto front as text; the memory limit and batch of a line ask for its plan."""
    yield f"\nfront    {'samples/s':>10}{'step':>10}  {'--memory':<12}{'--global-batch':<16}strategy"
    for row in map(pareto_row, plans):
        limit = f"{-(-row['peak'] >> 20)}MiB"
        suffix = "" if row["fits"] else "   over the budget"
        yield (
            f"         {row['samples_per_s']:>10.4g}{seconds(row['step_time_s']):>10}  {limit:<12}"
            f"{row['global_batch']:<16}{row['word']}, {row['micro_batches']} micro-batches{suffix}"
        )


def plan_json(plan: Plan, times: dict[str, float]) -> dict[str, Any]:
    """A plan as data, under the names of `plait plan --json`. `times`: seconds of planning, by phase."""
    prediction = plan.prediction
    return {
        "status": plan.status,
        "gap": plan.gap,
        "step_time_s": prediction.step_seconds,
        "tokens_per_s": prediction.tokens_per_second,
        "samples_per_s": prediction.samples_per_second,
        "mfu": prediction.mfu,
        "dollars": prediction.dollars_per_step,
        "joules": prediction.joules_per_step,
        "memory": [
            {
                "devices": [plan.ranks_of(s)[0], plan.ranks_of(s)[-1]],
                "terms": dict(stage.memory_terms),
                "peak": stage.peak_bytes,
                "budget": plan.memory_limit_of(s),
            }
            for s, stage in enumerate(plan.stages)
        ],
        "strategy": [
            {
                "function": plan.shardings[x.sharding].function,
                "calls": x.last - x.first,
                "word": str(plan.strategy_of(x)),
                "memory": str(x.memory),
            }
            for x in plan.layers
        ],
        "pipeline": {
            "stages": len(plan.stages),
            "micro_batches": plan.micro_batches,
            "schedule": plan.schedule,
            "chunks": plan.chunks_per_stage,
            "bubble": prediction.bubble,
        },
        "compression": [
            {
                "strategy": str(c.strategy),
                "role": c.role,
                "subject": c.subject,
                "program": c.program,
            }
            for c in plan.compression
        ],
        "groups": [
            {
                "device": plan.cluster_of(n).device.kind,
                "ranks": [plan.ranks_of(n)[0], plan.ranks_of(n)[-1]],
                "calls": [plan.stages[n].model_chunks[0][0], plan.stages[n].model_chunks[0][1] - 1],
                "micro_batches": len(group.micro_batches),
            }
            for n, group in enumerate(plan.groups)
        ],
        "plan_time_s": times,
        "digest": plan.digest,
        "global_batch": plan.global_batch,
        "word": plan.strategy_text,
    }
