"""`plait plan`: the question as it was typed, the plan, its figures, and the front around it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..ir.files import digest
from ..ir.plan import Plan
from . import documents
from .asked import TIME_LIMIT, load_model, note, show, source_text


def run(options: argparse.Namespace) -> int:
    from ..cost_model.hardware import load_fleet
    from ..ir.fleet import Fleet
    from ..planner import plan as search
    from ..planner.front import front
    from .face import memory_bytes, question
    from .fleet import run as run_fleet
    from .planned import planned

    start = time.perf_counter()
    cluster = load_fleet(options.cluster)
    model = load_model(options, options.global_batch)
    if options.global_batch is None and model.batch < cluster.devices:
        batch = -(-cluster.devices // model.batch) * model.batch
        note(f"global batch {batch}: {model.batch} would leave devices without a sample")
        model = load_model(options, batch)
    traced = time.perf_counter()
    asked = {
        "loss_fn": None, "global_batch": None, "precision": options.precision, "roles": options.roles,
        "pin": options.pin, "memory_bytes": memory_bytes(options.memory),
        "optimizer": options.optimizer, "micro_batches": options.micro_batches,
        "memory_actions": tuple(options.memory_actions.split(",")), "seed": options.seed,
        "time_limit_seconds": options.time_limit, "compress": options.compress,
        "quality": options.quality,
    }  # fmt: skip
    asked_model, how = question(model, None, **asked)
    if isinstance(cluster, Fleet):
        return run_fleet(options, asked_model, cluster, how, start)
    made = planned(search(asked_model, cluster, how))
    others = front(asked_model, cluster, how, batches=near(model.batch)) if options.front else []
    made = replace(made, source=source_text(options))
    done = time.perf_counter()
    if options.output:
        documents.write(Path(options.output), made, "plait/plan")
        note(f"wrote {options.output}")
    times = {"total": done - start, "trace": traced - start, "search": done - traced}
    if options.json:
        rows = {"front": [front_row(p) for p in others]} if options.front else {}
        show(plan_json(made, times) | rows)
    else:
        from ..ir.text import print_plan

        print(print_plan(made))
        if options.front:
            print("\n".join(front_table(others)))
        note(f"planned in {done - start:.1f} s, of it tracing {traced - start:.1f} s")
    if not made.complete:
        note("the search was stopped: the plan is the best so far")
    return 0 if made.complete else TIME_LIMIT


def near(batch: int) -> list[int]:
    """Batches beside one, for the front."""
    return [batch * 2, *([batch // 2] if batch % 2 == 0 else [])]


def front_row(plan: Plan) -> dict[str, Any]:
    """A plan of the front, and the budget that asks for it."""
    peak = plan.peak_bytes
    return {
        "global_batch": plan.global_batch, "samples_per_s": plan.prediction.samples_per_second,
        "step_time_s": plan.prediction.step_seconds, "peak": peak, "word": plan.word,
        "micro_batches": plan.micro_batches, "fits": peak <= plan.budget_bytes,
    }  # fmt: skip


def front_table(plans: list[Plan]) -> Iterator[str]:
    """The front as text: ask for a plan with the budget and the batch of its line."""
    from ..ir.text import seconds

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
        "status": plan.status, "gap": plan.gap, "step_time_s": p.step_seconds,
        "tokens_per_s": p.tokens_per_second, "samples_per_s": p.samples_per_second, "mfu": p.mfu,
        "memory": [
            {"devices": [s * per_stage, (s + 1) * per_stage - 1], "terms": dict(stage.memory),
             "peak": stage.peak_bytes, "budget": plan.budget_bytes}
            for s, stage in enumerate(plan.stages)
        ],
        "strategy": [
            {"function": plan.shardings[x.sharding].function, "calls": x.last - x.first,
             "word": str(plan.strategy_of(x)), "memory": x.memory}
            for x in plan.layers
        ],
        "pipeline": {"stages": len(plan.stages), "micro_batches": plan.micro_batches,
                     "schedule": plan.schedule, "bubble": p.bubble},
        "compression": [
            {"strategy": str(c.strategy), "role": c.role, "subject": c.subject, "program": c.program}
            for c in plan.compression
        ],
        "plan_time_s": times, "digest": digest(plan),
        "global_batch": plan.global_batch, "word": plan.word,
    }  # fmt: skip
