"""Plans for clusters of different devices, beside the best that uses some of them or treats all alike.

    python benchmarks/heterogeneous.py MODEL.json 1xh100+1xa100-80 3xh100+5xa100-40 [--global-batch N]

MODEL.json is a traced model (`plait trace`). All plans are judged by the same simulation.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from plait.api.formats import files
from plait.cost_model.hardware import load_any_cluster
from plait.ir.errors import InfeasibleError
from plait.ir.lowering.cast import in_precision
from plait.ir.lowering.rescale import rescale
from plait.ir.model.model import Model
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan


def row(model: Model, spec: str) -> str:
    """One line: the mixed step, that of each part alone and of all as the slowest, CPU seconds."""
    cluster = load_any_cluster(spec)
    if not cluster.parts:
        return f"| {spec} | one kind of device: not a mixture | | | |"
    start = time.process_time()
    try:
        answer = plan(model, cluster, PlanOptions())
    except InfeasibleError:
        return f"| {spec} | nothing fits | | | {time.process_time() - start:.1f} |"
    took, step = time.process_time() - start, answer.prediction.step_seconds
    if not answer.groups:
        return f"| {spec} | {step:.3g} s | on {answer.cluster} alone | | {took:.1f} |"
    verify_plan(answer)
    others = [a for a in answer.alternatives if " alone: " in a.name]
    alone = ", ".join(f"{a.step_seconds:.3g} s" for a in others) or "none fits"
    best = min((a.step_seconds for a in others), default=0.0)
    faster = f"{best / step:.2f}x, gap {answer.gap:.1%}" if best else "alone in fitting"
    return f"| {spec} | {step:.3g} s | {alone} | {faster} | {took:.1f} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("clusters", nargs="+")
    parser.add_argument("--global-batch", type=int)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args(arguments)
    model = in_precision(files.read(options.model, Model, "plait/model"), options.precision)
    if options.global_batch:
        model = rescale(model, options.global_batch)
    print("| devices | step | each part alone, all as the slowest | faster | CPU s |")
    print("|---|---|---|---|---|")
    for spec in options.clusters:
        print(row(model, spec))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
