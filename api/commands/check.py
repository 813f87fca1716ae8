"""`plait check`: any file or folder of ours, validated without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json
from .output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="model, plan, placement, graph, cluster (.toml), step log (.jsonl), buffers (.csv) or "
        "strategy of Galvatron's; or the folder of a program or of checkpoints",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..check import check

    kind = check(Path(arguments.file))
    if arguments.json:
        print_json({"format": kind, "ok": True})
    else:
        print(f"{arguments.file}: a sound {kind}")
    return 0
