"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...ir.plan.plan import Plan
    from ..formats.model_source import ModelSource

SOURCE = "pkg.mod:factory, file.py:factory, hf:config.json, or a model.json"


def add_source(parser: argparse.ArgumentParser) -> None:
    """SOURCE, --batch and --seq: the model that a command works on (see `source_of`)."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    _add_shape(parser)


def add_plan_source(parser: argparse.ArgumentParser, help: str) -> None:
    """--model, --batch and --seq: the model of a plan, where the file that it names is not enough."""
    parser.add_argument("--model", metavar="SOURCE", help=help)
    _add_shape(parser)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, help="samples to trace, for hf: sources (default: 1)")
    parser.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")


def add_engine(parser: argparse.ArgumentParser, help: str) -> None:
    """--engine: whose execution model prices a plan."""
    parser.add_argument("--engine", metavar="ENGINE", help=help)


def plan_of(arguments: argparse.Namespace, file: str) -> Plan:
    """The plan in a file; under --engine as that engine runs it."""
    from ..plans.engine_plans import plan_on_engine
    from ..plans.plan_model import model_of_plan
    from ..plans.plan_object import load_plan, with_methods

    plan = load_plan(file)
    if arguments.engine in (None, plan.engine):
        return plan
    model = model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    return with_methods(plan_on_engine(plan, model, arguments.engine))


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def source_of(arguments: argparse.Namespace) -> ModelSource:
    """The source of `add_source`'s arguments."""
    from ...ir.errors import UsageError
    from ..formats.model_source import ModelSource

    source = arguments.source
    for flag, value in (("--batch", arguments.batch), ("--seq", arguments.seq)):
        if value is not None and not source.startswith("hf:"):
            raise UsageError(
                f"{flag} {value} is for hf: sources: {source} has its own batch; --global-batch sets "
                "the samples of a step"
            )
    return ModelSource(source, arguments.batch, arguments.seq)
