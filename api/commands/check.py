"""`plait check`: a file of ours, validated without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json
from .output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...ir.plan.placement import GRAPH_FORMAT
    from ..formats import files
    from ..formats.model_source import read_model
    from ..placement import PLACEMENT, read_graph, read_placement
    from ..plans.plan_object import load_plan

    path = Path(arguments.file)
    kind = files.format_of(path)
    readers = {"plait/model": read_model, PLACEMENT: read_placement, GRAPH_FORMAT: read_graph}
    readers.get(kind, load_plan)(path)
    if arguments.json:
        print_json({"format": kind, "ok": True})
    else:
        print(f"{path}: a sound {kind}")
    return 0
