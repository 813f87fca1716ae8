"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    parser.add_argument("--batch", type=int, help="samples, for hf: sources")
    parser.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def source_of(arguments: argparse.Namespace) -> ModelSource:
    """The source of `add_source`'s arguments."""
    from ..formats.model_source import ModelSource

    return ModelSource(arguments.source, arguments.batch, arguments.seq)
