"""`plait kernels`: the kernels of a compression program, as source and compiled for targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json
from .output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="an algorithm (sdp4bit) or program (sdp4bit.weights)"
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="leave sources and assembly there")
    parser.add_argument(
        "--target",
        metavar="TARGETS",
        help="cpu,cuda:80,cuda:90,hip:gfx942; default: all that compile here",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..compiled_kernels import compile_kernels, kernel_table, parse_targets, pipelines_of

    pipelines = pipelines_of(arguments.name)
    targets = parse_targets(arguments.target)
    folder = Path(arguments.output) if arguments.output else None
    kernels = list(compile_kernels(pipelines, targets, folder))
    if arguments.json:
        print_json({"kernels": [kernel._asdict() for kernel in kernels]})
    else:
        print("\n".join(kernel_table(kernels)))
    return 0
