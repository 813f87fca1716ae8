"""`plait plan`: the question as it was typed, and the plan in the form that was asked for."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from msgspec.structs import replace

from ...ir.devices.heterogeneous import Fleet
from .. import files
from ..plan_json import front_row, front_table, plan_json
from .common import TIME_LIMIT, asked, note, show, source_text, subject


def run(options: argparse.Namespace) -> int:
    from ...planner import plan as search
    from ...planner.search.pareto import front
    from ..plan_object import planned
    from ..python import question
    from .plan_heterogeneous import run as run_fleet

    if options.buckets:
        from .plan_buckets import run as planned_set

        return planned_set(options)
    start = time.perf_counter()
    model, cluster = subject(options)
    traced = time.perf_counter()
    asked_model, how = question(model, None, cluster.devices, **asked(options))
    if isinstance(cluster, Fleet):
        return run_fleet(options, asked_model, cluster, how, start)
    made = planned(search(asked_model, cluster, how))
    others = front(asked_model, cluster, how, batches=near(model.batch)) if options.front else []
    made = replace(made, source=source_text(options))
    done = time.perf_counter()
    if options.output:
        files.write(Path(options.output), made, "plait/plan")
        note(f"wrote {options.output}")
    times = {"total": done - start, "trace": traced - start, "search": done - traced}
    if options.json:
        rows = {"front": [front_row(p) for p in others]} if options.front else {}
        show(plan_json(made, times) | rows)
    else:
        from ...ir.text.printer import print_plan

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
