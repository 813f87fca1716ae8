"""CPU seconds of tracing and planning: `python benchmarks/planning_time.py CONFIG.json …`.

Each argument is a transformers config file; each is planned for three clusters of 64 devices.
"""

from __future__ import annotations

import sys
import time

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.planner import PlanOptions, plan

CLUSTERS = ("64xh100", "8x8xh100", "4x4x4xh100")


def main(configs: list[str]) -> None:
    print(f"{'model':<28}{'trace s':>9}" + "".join(f"{c:>14}" for c in CLUSTERS))
    for config in configs:
        start = time.process_time()
        source = load_source(f"hf:{config}", batch=64, seq=1024)
        model = trace(source.model, source.batch, batch_size=64)
        traced = time.process_time() - start
        times = []
        for name in CLUSTERS:
            start = time.process_time()
            plan(model, load_cluster(name), PlanOptions())
            times.append(time.process_time() - start)
        print(f"{model.name:<28}{traced:>9.1f}" + "".join(f"{t:>12.1f} s" for t in times))


if __name__ == "__main__":
    main(sys.argv[1:])
