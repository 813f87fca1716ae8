"""Figures of placements of operators on devices."""

from __future__ import annotations

import json
import math
from pathlib import Path

from plait.api.formats.files import read_graph
from plait.benchmarks.placement import Comparison, solve, target_of
from plait.planner.placement import PlacementOptions

GRAPHS = ("bert24_train_tight", "gnmt_train_tight", "bert3_train", "baechi_graph_fig")
SECONDS = 2.0


def over_baechi(data: Path | None) -> float | None:
    """Percent that the best of Baechi's placements takes longer, in the geometric mean."""
    folder = data and data / "placement"
    if folder is None or not (folder / "instances.json").is_file():
        return None
    comparison, logs = Comparison(folder, "parallel", SECONDS), list[float]()
    for instance in json.loads((folder / "instances.json").read_text()):
        if not any(name in instance["id"] for name in GRAPHS):
            continue
        graph = read_graph(folder / instance["graph"])
        options = PlacementOptions(link="parallel", seconds=SECONDS)
        found, _ = solve(graph, target_of(instance), options)
        baseline = comparison.baseline(instance, graph)
        if found is not None and baseline:
            logs.append(math.log(baseline / found.makespan_us))
    return 100 * (math.exp(sum(logs) / len(logs)) - 1) if logs else None
