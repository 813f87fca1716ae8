"""`plait run`: the ranks of a program, started with torchrun."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- args")


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.launch.launch import torchrun

    return torchrun(Path(arguments.directory), [a for a in arguments.rest if a != "--"])
