"""`plait compile`: the training program of a plan or placement."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_source, source_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="plan.json or placement.json")
    add_source(parser)
    parser.add_argument("-o", "--output", required=True, metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    from ...codegen import write_program
    from ..compilation import read_target

    target = read_target(Path(arguments.plan))
    source = source_of(arguments)
    model = source.load_for(target.batch, target.precision, target.model_digest)
    program = target.program(model, str(source))
    write_program(program, Path(arguments.output))
    lines = sum(text.count("\n") for _, text in program.files)
    print(
        f"{arguments.output}: {len(program.files)} files, {lines} lines; start it with "
        f"`plait run {arguments.output}`"
    )
    return 0
