"""`plait explain`: the numbers behind a plan, and what another strategy would cost more."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...ir.errors import UsageError
from .arguments import add_engine, add_json, add_plan_source, plan_of
from .output import note, print_json

if TYPE_CHECKING:
    from ...ir.model.model import Model
    from ...ir.plan.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan", metavar="PLAN", help="plan.json, or the configuration of another engine"
    )
    parser.add_argument(
        "where",
        nargs="?",
        help="call, function or stage: model.layers.3, 'block*', stage0; of another engine's "
        "configuration the SOURCE of its model",
    )
    parser.add_argument("--cluster", help="where another engine's configuration runs")
    parser.add_argument(
        "--memory-limit", metavar="MEMORY", help="and how much of a device it may use"
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
    add_engine(parser, "explain the plan as this engine runs it; default: the plan's own")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ..plans.imported import is_plan_file

    if not is_plan_file(Path(arguments.plan)):
        return _explain_imported(arguments)
    from ..plans.explanation import explain, explain_json, explain_sharding
    from ..plans.plan_json import plan_json

    plan = plan_of(arguments, arguments.plan)
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


def _explain_imported(arguments: argparse.Namespace) -> int:
    """Explain another engine's configuration: whether it fits, its step, and what would be faster."""
    from ...cost_model.hardware import load_cluster
    from ...ir.text.units import parse_memory
    from ..formats.model_source import ModelSource
    from ..plans.imported import read_imported
    from ..plans.imported_explanation import explain_imported, imported_json, imported_text

    source = arguments.where or arguments.model
    if source is None or arguments.cluster is None:
        raise UsageError(
            f"{arguments.plan} is another engine's: name its model and cluster, as in `plait explain "
            f"{arguments.plan} hf:config.json --seq 4096 --cluster 16x8xh100`"
        )
    cluster = load_cluster(arguments.cluster)
    file = read_imported(arguments.plan, cluster.devices)
    memory = parse_memory(arguments.memory_limit) if arguments.memory_limit else None
    explained = explain_imported(
        file, ModelSource(source, arguments.batch, arguments.seq), cluster, memory
    )
    if arguments.json:
        print_json(imported_json(explained))
    else:
        print("\n".join(imported_text(explained)))
    return 0
