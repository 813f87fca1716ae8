"""`plait plan` for a fleet: the plan of its lines as text and JSON."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...ir.devices.heterogeneous import Crew, Fleet, FleetPlan
from ...ir.files import digest
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ...ir.text.printer import gib, one_line, print_plan, seconds
from ...planner.heterogeneous.judge import check
from ...planner.heterogeneous.search import plan as search
from ...planner.options import PlanOptions
from .. import files
from ..plan_json import plan_json
from .common import TIME_LIMIT, note, show


def run(
    options: argparse.Namespace, model: Model, fleet: Fleet, asked: PlanOptions, start: float
) -> int:
    """Plan, write and print; a part that is faster alone gives an ordinary plan."""
    made = search(model, fleet, asked)
    took = time.perf_counter() - start
    if isinstance(made, Plan):
        note(
            f"no mixture is faster than {made.cluster.name} ({made.cluster.devices} devices) by itself"
        )
        kind, figures = "plait/plan", plan_json(made, {"total": took})
    else:
        check(made)
        kind, figures = "plait/fleet-plan", fleet_json(made, took)
    if options.output:
        files.write(Path(options.output), made, kind)
        note(f"wrote {options.output}")
    if options.json:
        show(figures)
    else:
        print("\n".join(fleet_text(made)) if isinstance(made, FleetPlan) else print_plan(made))
        note(f"planned in {took:.1f} s")
    return 0 if made.complete else TIME_LIMIT


def fleet_text(plan: FleetPlan) -> Iterator[str]:
    """A plan in a screenful: its lines, crew by crew, and what the parts would do alone."""
    yield (
        f"plan for {one_line(plan.model)} on {one_line(str(plan.fleet))}   "
        f"{seconds(plan.step_seconds)}/step, gap {plan.gap:.2%}"
    )
    count = sum(line.micro_batches for line in plan.lines)
    yield f"  global batch {plan.global_batch}, {count} micro-batches of {plan.micro_batch}, 1f1b"
    for number, line in enumerate(plan.lines):
        yield f"  line {number}: {line.micro_batches} micro-batches in {seconds(line.seconds)}"
        for crew in line.crews:
            yield "    " + crew_text(plan, crew)
    yield f"  once per step {seconds(plan.sync_seconds)}"
    names = [f"part {n} alone" for n in range(len(plan.fleet.parts))] + ["all as the slowest"]
    told = (
        f"{name} {'does not fit' if s is None else seconds(s)}"
        for name, s in zip(names, plan.alone, strict=True)
    )
    yield "  against " + ", ".join(told)


def crew_text(plan: FleetPlan, crew: Crew) -> str:
    first, last = crew.calls
    ranks, stage, device = crew.ranks(plan.fleet), crew.stage, plan.fleet.parts[crew.part].device
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
    return (
        f"{span:<12} {device.kind:<12} {crew.strategy!s:<14} {crew.memory:<10} calls {first}-"
        f"{last - 1}: forward {seconds(stage.forward_seconds)}, backward "
        f"{seconds(stage.backward_seconds)}, {gib(stage.peak_bytes)} of {gib(plan.budget(crew))}"
    )


def fleet_json(plan: FleetPlan, took: float) -> dict[str, Any]:
    """The figures of a plan under the names of `plan --json`."""
    return {
        "status": plan.status,
        "gap": plan.gap,
        "step_time_s": plan.step_seconds,
        "tokens_per_s": plan.tokens_per_second,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "sync_s": plan.sync_seconds,
        "alone_s": list(plan.alone),
        "lines": [
            {
                "micro_batches": line.micro_batches,
                "seconds": line.seconds,
                "crews": [
                    {
                        "ranks": list(crew.ranks(plan.fleet)),
                        "word": str(crew.strategy),
                        "memory": crew.memory,
                        "calls": [crew.calls[0], crew.calls[1] - 1],
                        "peak": crew.stage.peak_bytes,
                        "budget": plan.budget(crew),
                        "terms": dict(crew.stage.memory),
                    }
                    for crew in line.crews
                ],
            }
            for line in plan.lines
        ],
        "plan_time_s": {"total": took},
        "digest": digest(plan),
    }
