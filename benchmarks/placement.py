"""Placements against Baechi's: `python benchmarks/placement.py PATH [--seconds S] [NAME …]`.

PATH is a folder with `evaluate.py`, `instances.json`, `table.csv` and their graphs, or a folder that
holds it as `data/placement`; without it there is nothing to compare and the benchmark says so. Every
placement is judged by PATH's own evaluation: with parallel transfers against the best of Baechi's
published algorithms as run for the table, and with duplex links against its m-ETF.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.api.formats.files import read_graph
from plait.ir.errors import InfeasibleError
from plait.ir.plan.placement import (
    Placement,
    PlacementDevice,
    PlacementGraph,
    PlacementLink,
    PlacementTarget,
)
from plait.planner.placement import PlacementOptions
from plait.planner.placement.options import LINKS
from plait.planner.placement.search import place

JUDGED = {"parallel": "parallel", "duplex": "duplex", "half-duplex": "sequential"}


def folder_of(path: str) -> Path | None:
    """The folder with the instances, or None."""
    for folder in (Path(path), Path(path, "data", "placement")):
        if (folder / "evaluate.py").is_file() and (folder / "instances.json").is_file():
            return folder
    return None


def load_judge(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", folder / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target_of(instance: dict[str, Any]) -> PlacementTarget:
    link = PlacementLink(instance["comm"]["alpha_us"], instance["comm"]["beta_us_per_byte"])
    devices = (PlacementDevice(d["memory"], d.get("speed", 1.0)) for d in instance["devices"])
    return PlacementTarget(tuple(devices), ((link,),))


def solve(
    graph: PlacementGraph, target: PlacementTarget, options: PlacementOptions
) -> tuple[Placement | None, float]:
    """(the placement if there is one, CPU seconds)."""
    start = time.process_time()
    try:
        return place(graph, target, options).placement, time.process_time() - start
    except InfeasibleError:
        return None, time.process_time() - start


class Comparison:
    """One table: a link model, and what the makespans are divided by."""

    def __init__(self, folder: Path, link: str, seconds: float) -> None:
        self.judge, self.folder, self.link, self.seconds = load_judge(folder), folder, link, seconds
        self.rows = {r["instance"]: r for r in csv.DictReader((folder / "table.csv").open())}
        self.ratios: list[float] = []

    def judged(self, instance: dict[str, Any], placement: Placement) -> dict[str, Any]:
        problem = self.judge.load_instance([instance], instance["id"], str(self.folder))
        data = {"device": placement.device, "order": list(placement.order)}
        return dict(self.judge.judge(problem, data, JUDGED[self.link]))

    def baseline(self, instance: dict[str, Any], graph: PlacementGraph) -> float | None:
        """Microseconds to compare with."""
        if self.link == "parallel":
            best = self.rows[instance["id"]]["baechi_best_feasible"]
            return float(best) if best else None
        roomy = PlacementTarget(
            (PlacementDevice(1e17),) * len(instance["devices"]), target_of(instance).links
        )  # Baechi's own memory check may fail where its makespan is of interest
        fits, _ = solve(graph, target_of(instance), PlacementOptions("m-etf", "parallel"))
        found = fits or solve(graph, roomy, PlacementOptions("m-etf", "parallel"))[0]
        assert found is not None
        return float(self.judged(instance, found)["makespan_us"])

    def line(self, instance: dict[str, Any]) -> str:
        graph = read_graph(self.folder / instance["graph"])
        options = PlacementOptions(link=self.link, seconds=self.seconds)  # type: ignore[arg-type]
        solution, spent = solve(graph, target_of(instance), options)
        head = f"{instance['id']:<34}{len(graph.nodes):>6}"
        against = self.baseline(instance, graph)
        if solution is None:
            return f"{head}{'none fits':>12}{'':>42}{spent:>8.1f}"
        verdict = self.judged(instance, solution)
        assert verdict["feasible"], instance["id"]
        assert math.isclose(verdict["makespan_us"], solution.makespan_us, rel_tol=1e-12)
        ratio = solution.makespan_us / against if against else math.nan
        if against:
            self.ratios.append(ratio)
        return (
            f"{head}{solution.makespan_us:>12.1f}{solution.lower_bound_us:>12.1f}"
            f"{100 * solution.gap:>8.3f} %"
            f"{against or math.nan:>12.1f}{ratio:>8.4f}{spent:>8.1f}  {solution.algorithm}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("path")
    parser.add_argument("names", nargs="*", help="parts of instance names; default: all")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--links", nargs="*", choices=LINKS, default=("parallel", "duplex"))
    options = parser.parse_args()
    folder = folder_of(options.path)
    if folder is None:
        print(f"{options.path}: no instances here; nothing to compare")
        return
    instances = json.loads((folder / "instances.json").read_text())
    for link in options.links:
        table = Comparison(folder, link, options.seconds)
        base = "Baechi best" if link == "parallel" else "m-ETF"
        print(
            f"\n{link} links\n{'instance':<34}{'ops':>6}{'makespan us':>12}{'bound':>12}"
            f"{'gap':>10}{base:>12}{'ratio':>8}{'CPU s':>8}"
        )
        for instance in instances:
            if not options.names or any(name in instance["id"] for name in options.names):
                print(table.line(instance), flush=True)
        if table.ratios:
            mean = math.exp(sum(map(math.log, table.ratios)) / len(table.ratios))
            print(f"geometric mean {mean:.4f}, worst {max(table.ratios):.4f} of {base}")


if __name__ == "__main__":
    main()
