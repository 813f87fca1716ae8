"""`plait run`: the ranks of a program, started with torchrun."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...ir.errors import PlaitError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks",
        type=int,
        default=0,
        metavar="N",
        help="another number of ranks than planned: the plan is made again for them",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often all ranks start again when one fails (with --checkpoint-every)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="until a missing or stopped rank ends all others; default: that of main.py, 60",
    )
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="-- args", help="of main.py: see -- --help"
    )


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.launch.launch import RunOptions, torchrun

    folder, rest = Path(arguments.directory), [a for a in arguments.rest if a != "--"]
    if not any(argument.split("=")[0] == "--source" for argument in rest):
        verify_source(folder)
    timeout = [] if arguments.timeout is None else ["--timeout", str(arguments.timeout)]
    torchrun(folder, [*timeout, *rest], RunOptions(arguments.ranks, arguments.restarts))


def verify_source(folder: Path) -> None:
    """Raises UsageError where a program's source has no weights, MismatchError where its model was
    edited since it was compiled."""
    from ...runtime.launch.program_folder import read_table
    from ..formats.model_source import named_source

    table = read_table(folder)
    source = named_source(table.source)
    if source is None:
        return
    if source.is_file:
        raise UsageError(
            f"{folder} was compiled from {source.source}, which has no weights: name the factory or "
            f"configuration that it was traced from, with `plait run {folder} --source FACTORY`"
        )
    from ...ir.capture import load_source
    from ...runtime.state.module.module_match import verify_module

    try:
        module = load_source(source.source, batch=source.batch, seq=source.seq).model
    except PlaitError:
        return  # main.py may train another model by now; it says what is wrong
    verify_module(table, module)
