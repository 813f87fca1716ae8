"""`plait explain`: the numbers behind a plan, and what another strategy would cost more."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...ir.errors import UsageError
from .arguments import add_json, add_plan_source
from .output import note, print_json

if TYPE_CHECKING:
    from ...ir.model.model import Model
    from ...ir.plan.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument(
        "where", nargs="?", help="call, function or stage: model.layers.3, 'block*', stage0"
    )
    parser.add_argument("--memory", action="store_true", help="memory terms of every stage")
    parser.add_argument(
        "--why-not", metavar="STRATEGY", help="price this strategy too, and say what is worse"
    )
    parser.add_argument(
        "--sharding", action="store_true", help="who splits what, one operator a line"
    )
    add_plan_source(
        parser,
        help="its model, for --why-not and --sharding; default: the file that the plan names",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..plans.explanation import explain, explain_json, explain_sharding
    from ..plans.plan_json import plan_json
    from ..plans.plan_object import load_plan

    plan = load_plan(arguments.plan)
    if arguments.why_not:
        return _why_not(plan, arguments)
    if arguments.sharding:
        print(explain_sharding(plan, _model(plan, arguments), arguments.where))
        return 0
    if arguments.json:
        print_json(plan_json(plan, {}) | explain_json(plan, arguments.where, arguments.memory))
        return 0
    if arguments.where is None and not arguments.memory:
        print(plan, end="\n\n")
    print(explain(plan, arguments.where, memory=arguments.memory))
    return 0


def _model(plan: Plan, arguments: argparse.Namespace) -> Model | None:
    """The plan's model, or None where neither the plan nor the arguments name its file."""
    from ..plans.plan_model import model_of_plan

    try:
        return model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    except UsageError as error:
        if arguments.model is not None:
            raise
        note(f"operators have no names: {error}")
        return None


def _why_not(plan: Plan, arguments: argparse.Namespace) -> int:
    from ..plans.comparison import comparison, comparison_json, plan_with_strategy
    from ..plans.plan_model import model_of_plan

    model = model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    other = plan_with_strategy(plan, model, arguments.why_not)
    if arguments.json:
        print_json(comparison_json(plan, other))
    else:
        print(comparison(plan, other))
    return 0
