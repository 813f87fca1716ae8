"""`plait run`: the ranks of a program, started with torchrun."""

from __future__ import annotations

import argparse
from pathlib import Path


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

    options = RunOptions(arguments.ranks, arguments.restarts)
    options_of_main = [] if arguments.timeout is None else ["--timeout", str(arguments.timeout)]
    options_of_main += [a for a in arguments.rest if a != "--"]
    torchrun(Path(arguments.directory), options_of_main, options)
