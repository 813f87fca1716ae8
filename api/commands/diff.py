"""`plait diff`: two plans side by side, and what baselines would do with the same model and cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...ir.errors import UsageError
from ...ir.text.units import gib, seconds
from .arguments import add_json, add_plan_source
from .output import print_json

if TYPE_CHECKING:
    from ...ir.plan.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="A", help="plan.json")
    parser.add_argument("other", metavar="B", nargs="?", help="another plan.json")
    parser.add_argument(
        "--against",
        metavar="BASELINES",
        help="ddp, fsdp, hsdp, zero1..3, megatron:tp=8,pp=4, word:dp=2,tp=2",
    )
    add_plan_source(
        parser, help="the plan's model, for --against; default: the file that the plan names"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..plans.comparison import comparison, comparison_json, layer_differences
    from ..plans.plan_object import load_plan

    plan = load_plan(arguments.plan)
    if (arguments.other is None) == (arguments.against is None):
        raise UsageError("name a second plan, or baselines with --against")
    if arguments.against:
        return _against(plan, arguments)
    other = load_plan(arguments.other)
    if arguments.json:
        print_json(comparison_json(plan, other))
    else:
        print("\n".join([comparison(plan, other), *layer_differences(plan, other)]))
    return 0


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
