"""`plait export`: a plan as the configuration with which another engine starts the job."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...ir.errors import UsageError
from ...ir.plan.plan import Plan
from .arguments import add_plan_source
from .output import note

TARGETS = ("torchtitan", "megatron", "deepspeed", "accelerate", "galvatron")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument(
        "--to",
        required=True,
        choices=TARGETS,
        metavar="ENGINE",
        help=f"what to start it with: {', '.join(TARGETS)}",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="its suffix (.toml, .args, .yaml, .json) names the form; default: print the usual one",
    )  # fmt: skip
    add_plan_source(
        parser, help="the plan's model, to price what the file cannot say; default: the plan's file"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..formats import files
    from ..plans.engine_plans import export, suffix_of
    from ..plans.plan_object import load_uniform_plan

    plan = load_uniform_plan(arguments.plan, "export")
    text = export(plan, arguments.to, _model(plan, arguments), suffix_of(arguments.output))
    if arguments.output:
        files.write_text(Path(arguments.output), text)
        note(f"wrote {arguments.output}")
    else:
        print(text, end="")
    return 0


def _model(plan: Plan, arguments: argparse.Namespace):
    """The plan's model, or None where neither the plan nor the arguments name its file."""
    from ..plans.plan_model import model_of_plan

    try:
        return model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    except UsageError:
        if arguments.model is not None:
            raise
        return None
