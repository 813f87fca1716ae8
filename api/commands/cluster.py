"""`plait cluster init`: the cluster of the running machine or Slurm job, as a file to edit."""

from __future__ import annotations

import argparse
from pathlib import Path

from .output import note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("init",), help="ask this machine what it is")
    parser.add_argument(
        "--nodes", type=int, help="machines like this one; default: those of the Slurm job, else 1"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="TOML file; default: print it")


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.measurement.inventory import answer, take_inventory
    from ..formats import files
    from ..formats.machine_file import machine_file

    text = machine_file(take_inventory(answer), arguments.nodes)
    if arguments.output:
        files.write_text(Path(arguments.output), text)
        note(f"wrote {arguments.output}: `plait calibrate` measures what is assumed in it")
    else:
        print(text, end="")
    return 0
