"""`plait place`: every operator of a graph, or of a model's step, on one device."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_json, add_source, source_of
from .output import TIME_LIMIT, best_so_far, note, print_json, progress

if TYPE_CHECKING:
    from ...ir.devices.cluster import Cluster
    from ...ir.model.model import Model
    from ...ir.plan.placement import PlacementGraph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_json(parser)
    parser.add_argument("--devices", type=int, help="how many; default: those of the cluster")
    parser.add_argument("--memory", help="per device, as in 8GiB; default: the cluster's")
    parser.add_argument("--cluster", help="preset, local:N or a TOML file: times, memory and links")
    parser.add_argument(
        "--alpha-us", type=float, default=10.0, help="microseconds of every transfer"
    )
    parser.add_argument(
        "--beta-us-per-byte", type=float, default=1 / 12e3, help="and of every byte"
    )
    parser.add_argument("--link", default="duplex", choices=("parallel", "duplex", "half-duplex"))
    parser.add_argument("--memory-rule", default="train", choices=("train", "infer"))
    parser.add_argument(
        "--algorithm", default="auto", choices=("auto", "m-topo", "m-etf", "m-sct", "list", "exact")
    )
    parser.add_argument(
        "--colocation",
        default="free",
        choices=("free", "keep"),
        help="keep: a group of a graph file stays on one device",
    )
    parser.add_argument(
        "--optimizer", default="adamw", help="whose states a model's parameters have"
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="of search; default: enough"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the placement as JSON")


def run(arguments: argparse.Namespace) -> int:
    """The exit code is 4 where the time limit ended the search."""
    from ...cost_model.hardware import load_cluster
    from ...ir.text.units import parse_memory
    from ...ir.text.units import seconds as with_unit
    from ...planner.placement import PlacementOptions, search
    from .. import placement
    from ..formats import files

    cluster = load_cluster(arguments.cluster) if arguments.cluster else None
    target = placement.placement_target(
        cluster,
        arguments.devices,
        parse_memory(arguments.memory or None),
        arguments.alpha_us,
        arguments.beta_us_per_byte,
    )
    graph, model = _graph(arguments, cluster)
    options = PlacementOptions(
        arguments.algorithm,
        arguments.link,
        arguments.memory_rule,
        arguments.time_limit,
        seed=arguments.seed,
        colocation=model is not None or arguments.colocation == "keep",
    )
    start = time.perf_counter()
    with progress("placing") as update:
        outcome = search.place(graph, target, options, watch=best_so_far(update, with_unit))
    result = outcome.placement
    if model is not None:
        result = placement.placement_of_model(result, model)
    seconds = time.perf_counter() - start
    if arguments.output:
        files.write(Path(arguments.output), result, placement.PLACEMENT)
        note(f"wrote {arguments.output}")
    if arguments.json:
        print_json(placement.placement_json(result, seconds))
    else:
        print(placement.placement_text(result))
        note(f"placed in {seconds:.1f} s")
    return TIME_LIMIT if outcome.timed_out else 0


def _graph(
    arguments: argparse.Namespace, cluster: Cluster | None
) -> tuple[PlacementGraph, Model | None]:
    """The graph of SOURCE, and the model whose step it is, if any."""
    from ..formats import files
    from ..placement import step_graph

    source = source_of(arguments)
    path = Path(source.source)
    if source.is_file and files.format_of(path) != "plait/model":
        return files.read_graph(path), None
    model = source.load()
    return step_graph(model, cluster, arguments.optimizer), model
