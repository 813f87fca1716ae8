"""The figures of plans: as JSON, and a front as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ir.files import digest
from ..ir.plan.plan import Plan
from ..ir.text.printer import seconds


def front_row(plan: Plan) -> dict[str, Any]:
    """A plan of the front, and the budget that asks for it."""
    peak = plan.peak_bytes
    return {
        "global_batch": plan.global_batch,
        "samples_per_s": plan.prediction.samples_per_second,
        "step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "word": plan.word,
        "micro_batches": plan.micro_batches,
        "fits": peak <= plan.budget_bytes,
    }


def front_table(plans: list[Plan]) -> Iterator[str]:
    """The front as text: ask for a plan with the budget and the batch of its line."""
    yield f"\nfront    {'samples/s':>10}{'step':>10}  {'--memory':<12}{'--global-batch':<16}strategy"
    for row in map(front_row, plans):
        budget = f"{-(-row['peak'] >> 20)}MiB"
        more = "" if row["fits"] else "   over the budget"
        yield (
            f"         {row['samples_per_s']:>10.4g}{seconds(row['step_time_s']):>10}  {budget:<12}"
            f"{row['global_batch']:<16}{row['word']}, {row['micro_batches']} micro-batches{more}"
        )


def plan_json(plan: Plan, times: dict[str, float]) -> dict[str, Any]:
    """The figures of a plan under the names that the documentation promises."""
    p = plan.prediction
    per_stage = plan.mesh.size // len(plan.stages)
    return {
        "status": plan.status,
        "gap": plan.gap,
        "step_time_s": p.step_seconds,
        "tokens_per_s": p.tokens_per_second,
        "samples_per_s": p.samples_per_second,
        "mfu": p.mfu,
        "memory": [
            {
                "devices": [s * per_stage, (s + 1) * per_stage - 1],
                "terms": dict(stage.memory),
                "peak": stage.peak_bytes,
                "budget": plan.budget_bytes,
            }
            for s, stage in enumerate(plan.stages)
        ],
        "strategy": [
            {
                "function": plan.shardings[x.sharding].function,
                "calls": x.last - x.first,
                "word": str(plan.strategy_of(x)),
                "memory": x.memory,
            }
            for x in plan.layers
        ],
        "pipeline": {
            "stages": len(plan.stages),
            "micro_batches": plan.micro_batches,
            "schedule": plan.schedule,
            "chunks": plan.chunks,
            "bubble": p.bubble,
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
        "plan_time_s": times,
        "digest": digest(plan),
        "global_batch": plan.global_batch,
        "word": plan.word,
    }
