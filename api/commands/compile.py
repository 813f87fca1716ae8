"""`plait compile`: the training program of a plan or placement."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ...ir.errors import UsageError
from ...ir.plan.program import Kernels
from .arguments import add_source, source_of
from .print_after import add_print_after, compile_printers, pass_printer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="plan.json or placement.json")
    add_source(parser)
    add_print_after(parser)
    parser.add_argument(
        "--kernels",
        choices=get_args(Kernels),
        default="aten",
        help="that run functions: torch's one by one, or inductor's, compiled in the first step",
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="needed unless a pass is printed")


def run(arguments: argparse.Namespace) -> int:
    from ...codegen import write_program
    from ...ir.capture.sources.derived_types import verify_types
    from ...ir.plan.program import for_module
    from ...runtime.launch.program_folder import MODEL
    from ..compilation import read_target
    from ..formats import files

    printer = pass_printer(arguments, compile_printers)
    if printer is None and arguments.output is None:
        raise UsageError("name the folder of the program with -o DIR")
    target = read_target(Path(arguments.plan), printer)
    source = source_of(arguments)
    model = source.load_for(target.batch, target.precision, target.model_digest, printer)
    if source.is_file:
        verify_types(model)
    program = target.program(model, str(source), arguments.kernels)
    program = for_module(program, source.facts())
    if arguments.output:
        write_program(program, Path(arguments.output))
        files.write(Path(arguments.output) / MODEL, model, "plait/model")
    if printer is not None:
        printer.finish()
        return 0
    lines = sum(text.count("\n") for _, text in program.files)
    print(
        f"{arguments.output}: {len(program.files)} files, {lines} lines; start it with "
        f"`plait run {arguments.output}{' --source FACTORY' if source.is_file else ''}`"
    )
    return 0
