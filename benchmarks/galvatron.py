"""Our search against Galvatron's on Galvatron's own costs: `python galvatron.py FOLDER`.

FOLDER has `profiles/`, the JSON files that Galvatron ships for a model and clusters, and `runs/`,
one JSON a search: nodes, gpus_per_node, mem_gb, bsz, the name of the variant that searched, its best
plan, and the plan of every task with the step time and memory that its cost model predicted.
First every task is predicted again. Then every setting of a run is searched in the same space:
strategies, stages of equal depth, micro-batches, embedding and head, bytes in whole MiB. What a plan
may take of a device follows Galvatron's rule; `rule` is the search under it, `ours` under the same
rule made monotone.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.benchmarks.accuracy import table
from plait.benchmarks.rivals.galvatron_costs import GalvatronCosts
from plait.benchmarks.rivals.galvatron_pipeline import plan_bytes, plan_seconds
from plait.benchmarks.rivals.galvatron_profile import MIB, read_cluster, read_model
from plait.benchmarks.rivals.galvatron_search_space import (
    GIB,
    GalvatronPipeline,
    GalvatronProblems,
    budget_bytes,
    plain_budget_bytes,
    plan_of,
    tasks,
)
from plait.benchmarks.rivals.layers.check import faults
from plait.benchmarks.rivals.layers.exact_search import fastest
from plait.planner.interop.galvatron_file import GalvatronPlan
from plait.planner.interop.galvatron_strategy import GalvatronBatch, GalvatronStrategy, parse

MODEL = ("llama2-7b", 32, 4096, 2048)  # name in the profiles, layers, hidden size, tokens
TOLERANCE = 1e-6  # relative, of a predicted step time
Run = dict[str, Any]
Setting = tuple[int, int, int, int]  # nodes, GPUs of one, GiB, samples


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else Path("missing")
    if not (folder / "runs").is_dir():
        print(f"skipped: there is no folder {folder / 'runs'}")
        return 0
    runs: list[Run] = [json.loads(p.read_text()) for p in sorted((folder / "runs").glob("*.json"))]
    model = read_model(folder / "profiles", *MODEL)
    clusters = {(r["nodes"], r["gpus_per_node"]) for r in runs}
    costs = {c: GalvatronCosts(model, read_cluster(folder / "profiles", *c)) for c in clusters}
    same = [pair for r in runs for pair in predicted(r, costs[r["nodes"], r["gpus_per_node"]])]
    for what, errors in zip(("step times", "memories"), zip(*same, strict=True), strict=True):
        print(f"{sum(errors)} of {len(errors)} predicted {what} are Galvatron's")
    variants = sorted({r["variant"] for r in runs}, reverse=True)
    head = ["GPUs", "GiB", "batch", *variants, "rule", "ours", "gap", "CPU s", "plan"]
    rows = [
        row(setting, [errors.get(v) for v in variants], costs[setting[:2]])
        for setting, errors in sorted(best_by_variant(runs).items())
    ]
    print("samples/s by Galvatron's cost model", table(head, rows), sep="\n")
    return 0


def predicted(run: Run, costs: GalvatronCosts) -> Iterator[tuple[bool, bool]]:
    """For every task with a plan: whether step time and memory are those of the run."""
    whole = run["mem_gb"] * GIB
    cache = (whole - plain_budget_bytes(whole)) // MIB
    for task in run["tasks"]:
        if task["throughput"] > 0:
            plan = plan_in(task, costs.cluster.devices)
            seconds = plan_seconds(plan, costs) / task["time_cost"]
            ranks = None if task["mode"] == "sp_only" else task["buffer_tp"]
            memory = [size // MIB + cache for size in plan_bytes(plan, costs, ranks)]
            yield abs(seconds - 1) < TOLERANCE, memory == task["memory_cost"]


def plan_in(task: Run, devices: int) -> GalvatronPlan:
    ranks = task["vtp"]
    ends = GalvatronStrategy(
        task["pp"],
        ranks,
        devices // task["pp"] // ranks,
        bool(task["vsdp"]),
        False,
        bool(task["vsp"]),
    )
    layers = tuple(map(parse, task["strategies"]))
    return GalvatronPlan(
        GalvatronBatch(task["gbsz"], task["chunks"]), layers, tuple(task["stages"]), ends
    )


def best_by_variant(runs: list[Run]) -> dict[Setting, dict[str, float]]:
    """Samples per second of the best plan of every setting, by variant; 0 where none fits."""
    best: dict[Setting, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for run in runs:
        for task in run["tasks"]:
            setting = (run["nodes"], run["gpus_per_node"], run["mem_gb"], task["gbsz"])
            own = best[setting]
            own[run["variant"]] = max(own[run["variant"]], task["throughput"])
    return best


def row(setting: Setting, found: list[float | None], costs: GalvatronCosts) -> list[str]:
    nodes, gpus, gib, samples = setting
    rule, _, _, _ = searched(costs, plain_budget_bytes(gib * GIB), samples)
    ours, gap, cpu_seconds, plan = searched(costs, budget_bytes(gib * GIB), samples)
    return [
        f"{nodes}x{gpus}",
        str(gib),
        str(samples),
        *map(shown, found),
        shown(rule),
        shown(ours),
        f"{gap:.1%}",
        f"{cpu_seconds:.2f}",
        str(plan or "none fits"),
    ]


def shown(throughput: float | None) -> str:
    return "" if throughput is None else f"{throughput:.3f}"


def searched(
    costs: GalvatronCosts, budget: int, samples: int
) -> tuple[float, float, float, GalvatronPlan | None]:
    """Samples per second, the gap, CPU seconds and the plan of one search."""
    start = time.process_time()
    space = list(tasks(costs.cluster.devices, samples, costs.model.layers))
    made = GalvatronProblems(costs, budget)
    problems = [made.problem(task) for task in space]
    best = fastest(problems, GalvatronPipeline())
    cpu_seconds = time.process_time() - start
    if best is None:
        return 0.0, 0.0, cpu_seconds, None
    problem, solution = problems[best.number], best.solution
    wrong = faults(problem, solution, GalvatronPipeline())
    assert not wrong, wrong
    plan = plan_of(space[best.number], problem, solution)
    return samples / solution.step_seconds, solution.gap, cpu_seconds, plan


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
