"""Speed-ups of SDP4Bit, predicted and published: `python benchmarks/sdp4bit.py TABLES.csv`.

TABLES.csv has the rows of the paper (Jia et al. 2024, table 2): TFLOP/s per device of Megatron-LM with
its distributed optimizer, without and with compressed gradients and weights, on 64 A100 (four to a node
with one port of 100 Gbit/s) and 128 H800 (eight to a node with 3.2 Tbit/s). A step is one micro-batch
per replica; `--samples 1` is what the paper's communication times imply for the smallest model.

`--calibrated` takes the network's rate from one measurement, the baseline of the smallest model on each
machine, instead of from the datasheet, and leaves that model out of the count.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plait.api.predict.architecture import read_architecture
from plait.api.predict.machine import cluster_of
from plait.api.predict.predictor import MIXED, Predictor, execution_model_of
from plait.api.predict.run import Row, read_run
from plait.planner.compression.collectives import CollectiveCompressor
from plait.planner.pricing.candidate_pricer import CandidatePricer

# layers, width, heads
SIZES = {
    "GPT-1.3B": (24, 2048, 16),
    "GPT-2.7B": (32, 2560, 32),
    "GPT-6.7B": (32, 4096, 32),
    "GPT-13B": (40, 5120, 40),
    "GPT-18B": (40, 6144, 48),
}
MACHINES = {"A100": ("A100-SXM", 40, 64, 4, 25.0), "H800": ("H800", 80, 128, 8, 400.0)}
LAYOUT = r"TP(\d)[/ ]PP(\d)(?: \((\w+)\))?"
TOLERANCE = 0.2


class Case(NamedTuple):
    """One published speed-up. `tensor`, `pipeline`: degrees."""

    model: str
    machine: str
    tensor: int
    pipeline: int
    baseline_tflops: float
    speedup: float

    def row(self, samples: int, rate: float) -> Row:
        """The run as a row of a table; `rate`: Gbit/s of a device between nodes."""
        device, memory, devices, per_node, _ = MACHINES[self.machine]
        layers, hidden, heads = SIZES[self.model]
        data = devices // (self.tensor * self.pipeline)
        numbers = {
            "layers": layers, "hidden": hidden, "heads": heads, "ffn": 4 * hidden, "vocab": 50257,
            "gpu_mem_gb": memory, "num_gpus": devices, "gpus_per_node": per_node,
            "inter_node_gbps_per_gpu": rate, "tp": self.tensor, "pp": self.pipeline, "dp": data,
            "zero_stage": 1, "microbatch": samples, "grad_accum": 1, "seq_len": 2048,
        }  # fmt: skip
        texts = {
            "framework": "Megatron-LM",
            "precision": "bf16",
            "gpu": device,
            "recompute": "none",
        }
        return {name: str(value) for name, value in numbers.items()} | texts


def cases(path: Path) -> Iterator[Case]:
    """The published speed-ups, under the degrees that the baselines of their models name."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if "T2 E2E" in row["table"]]
    baselines = {
        (row["model"], row["hardware"]): float(row["value"])
        for row in rows
        if row["setting"].startswith("Baseline")
    }
    degrees = {
        (row["model"], machine): (int(tensor), int(pipeline))
        for row in rows
        for tensor, pipeline, only in re.findall(LAYOUT, row["setting"])
        for machine in MACHINES
        if not only or only == machine
    }
    for row in rows:
        if row["setting"] == "speedup":
            (machine,) = (m for m in MACHINES if m in row["hardware"])
            layout = degrees[row["model"], machine]
            baseline = baselines[row["model"], row["hardware"]]
            yield Case(row["model"], machine, *layout, baseline, float(row["value"]))


def measured_seconds(case: Case, samples: int) -> float:
    """Seconds of a baseline's step by Megatron's count of the products of a step."""
    layers, hidden, _ = SIZES[case.model]
    tokens = 2048 * samples
    flops = (
        72
        * tokens
        * layers
        * hidden**2
        * (1 + 2048 / (6 * hidden) + 50257 / (12 * layers * hidden))
    )
    return flops / (case.tensor * case.pipeline * case.baseline_tflops * 1e12)


def measured_rate(case: Case, samples: int, predictor: Predictor) -> float:
    """Gbit/s between nodes under which the baseline takes what was measured, by bisection."""
    low, high = 0.01 * MACHINES[case.machine][4], MACHINES[case.machine][4]
    for _ in range(20):
        middle = (low * high) ** 0.5
        slow = step_seconds(case, samples, "none", predictor, middle)
        low, high = (middle, high) if slow > measured_seconds(case, samples) else (low, middle)
    return high


def step_seconds(
    case: Case, samples: int, compress: str, predictor: Predictor, rate: float
) -> float:
    """Predicted seconds of a step whose gradients and weights travel as `compress` says."""
    row = case.row(samples, rate)
    architecture, run = read_architecture(row), read_run(row)
    prices = predictor.prices(architecture, run, cluster_of(run), execution_model_of(run))
    compressor = CollectiveCompressor(compress, "all", "adamw")
    pricer = CandidatePricer(prices, run.global_batch, MIXED, compressor)
    candidate = pricer.candidate(pricer.point(run.layout.strategy, run.micro_batches))
    assert candidate is not None, run
    return candidate.step_seconds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--samples", type=int, default=1, help="sequences of a micro-batch")
    parser.add_argument("--calibrated", action="store_true", help="networks at the rate they had")
    options = parser.parse_args(arguments)
    predictor, within = Predictor(), []
    rates = {machine: numbers[4] for machine, numbers in MACHINES.items()}
    judged = list(cases(options.tables))
    if options.calibrated:
        smallest = {case.machine: case for case in reversed(judged)}
        for machine, case in smallest.items():
            rates[machine] = measured_rate(case, options.samples, predictor)
            print(f"{machine}: {rates[machine]:.1f} Gbit/s per device between nodes")
        judged = [case for case in judged if case not in smallest.values()]
    print("model     machine  layout     plain s  sdp4bit s  predicted  published  error  auto")
    for case in judged:
        plain, coded, chosen = (
            step_seconds(case, options.samples, compress, predictor, rates[case.machine])
            for compress in ("none", "sdp4bit", "auto")
        )
        error = plain / coded / case.speedup - 1
        within.append(abs(error) <= TOLERANCE)
        print(
            f"{case.model:<10}{case.machine:<9}tp={case.tensor},pp={case.pipeline}{plain:>11.3f}"
            f"{coded:>11.3f}{plain / coded:>11.2f}{case.speedup:>11.2f}{100 * error:>6.0f}%  "
            + ("taken" if chosen < plain else "none")
        )
    print(f"{sum(within)} of {len(within)} within {100 * TOLERANCE:.0f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
