"""`plait diff`: two plans or engines side by side, and what baselines would do with the same job."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...ir.errors import UsageError
from ...ir.text.units import gib, seconds
from .arguments import add_engine, add_json, add_plan_source, plan_of
from .output import print_json

if TYPE_CHECKING:
    from ...ir.plan.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="A", help="plan.json")
    parser.add_argument("other", metavar="B", nargs="?", help="another plan.json")
    parser.add_argument(
        "--against",
        metavar="BASELINES",
        help="ddp, fsdp, hsdp:16, zero1..3, megatron:tp=8,pp=4,vpp=2, deepspeed:zero=2, word:dp=2",
    )
    add_plan_source(
        parser, help="the plan's model, for --against; default: the file that the plan names"
    )
    add_engine(
        parser,
        "alone: the same job planned for this engine; with B or --against: prices as it runs",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..plans.comparison import comparison, comparison_json, layer_differences
    from ..plans.plan_object import load_plan

    if arguments.other is not None and arguments.against is not None:
        raise UsageError("name a second plan, or baselines with --against, not both")
    if arguments.against:
        return _against(plan_of(arguments, arguments.plan), arguments)
    if arguments.other is not None:
        plan, other = (plan_of(arguments, file) for file in (arguments.plan, arguments.other))
    elif arguments.engine is not None:
        plan = load_plan(arguments.plan)
        other = _on_engine(plan, arguments)
    else:
        raise UsageError("name a second plan, baselines with --against, or an --engine")
    if arguments.json:
        print_json(comparison_json(plan, other))
    else:
        print("\n".join([comparison(plan, other), *layer_differences(plan, other)]))
    return 0


def _on_engine(plan: Plan, arguments: argparse.Namespace) -> Plan:
    """The plan's job, planned for another engine."""
    from ..plans.engine_plans import job_on_engine
    from ..plans.plan_model import model_of_plan

    model = model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    return job_on_engine(plan, model, arguments.engine)


def _against(plan: Plan, arguments: argparse.Namespace) -> int:
    from ...planner.search.baselines import parse_baselines
    from ..plans.comparison import baseline_plans, plan_row
    from ..plans.plan_model import model_of_plan

    baselines = parse_baselines(arguments.against, plan.cluster)
    model = model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    others = baseline_plans(plan, model, baselines)
    if arguments.json:
        rows = [_row_json(plan, name, other) for name, other in others]
        print_json({"plan": plan_row(plan), "baselines": rows})
    else:
        print("\n".join(_table(plan, others)))
    return 0


def _row_json(plan: Plan, name: str, other: Plan | None) -> dict[str, Any]:
    from ..plans.comparison import plan_row

    if other is None:
        return {"name": name, "possible": False}
    ratio = other.prediction.step_seconds / plan.prediction.step_seconds
    return {"name": name, "possible": True, **plan_row(other), "times_as_long": ratio}


def _table(plan: Plan, others: Iterable[tuple[str, Plan | None]]) -> Iterator[str]:
    """The plan and its baselines, one a line."""
    from ..plans.comparison import plan_row

    yield f"{'':<24}{'step':>10}{'of plan':>9}{'peak':>12}  strategy"
    for name, other in [("plan", plan), *others]:
        if other is None:
            yield f"{name:<24}{'-':>10}{'-':>9}{'-':>12}  the model cannot be split so"
            continue
        row = plan_row(other)
        ratio = row["step_time_s"] / plan.prediction.step_seconds
        suffix = "" if row["fits"] else f"  does not fit: has {gib(plan.memory_limit_bytes)}"
        yield (
            f"{name:<24}{seconds(row['step_time_s']):>10}{ratio:>8.2f}x{gib(row['peak']):>12}  "
            f"{row['word']}, {row['micro_batches']} micro-batches, {row['memory']}{suffix}"
        )
