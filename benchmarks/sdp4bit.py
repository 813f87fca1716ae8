"""Speed-ups of SDP4Bit, predicted and published: `python benchmarks/sdp4bit.py TABLES.csv`.

TABLES.csv has the rows of the paper (Jia et al. 2024, table 2): TFLOP/s per device of Megatron-LM with
its distributed optimizer, without and with compressed gradients and weights, on 64 A100 (four to a node
with one port of 100 Gbit/s) and 128 H800 (eight to a node with 3.2 Tbit/s). A step is one micro-batch
per replica; `--samples 1` is what the paper's communication times imply for the smallest model.

`--calibrated` takes the network's rate and a slowdown of devices and hosts from the two measurements of
the smallest model on each machine, instead of datasheets, and leaves that model out of the count.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from plait.api.predict.architecture import read_architecture
from plait.api.predict.machine import cluster_of
from plait.api.predict.predictor import MIXED, Predictor, execution_model_of
from plait.api.predict.run import Row, read_run
from plait.cost_model.scaled_cluster import ScaleFactors, scaled_cluster
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
NEWTON_STEPS, DIFFERENCE = 5, 0.1  # of logarithms


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
            "year": "2023",  # of the version that the paper changed: eager, nothing overlaps
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


class Calibration(NamedTuple):
    """What steps imply: a slowdown of devices and hosts, Gbit/s per device between nodes."""

    compute: float
    rate: float


def calibrated(case: Case, samples: int, models: dict[Any, Any]) -> Calibration:
    """The slowdown and the rate under which the baseline and the compressed step of a case take what
    was measured: Newton's method on logarithms, with differences for derivatives."""
    plain = measured_seconds(case, samples)
    wanted = np.log([plain, plain / case.speedup])
    logs: NDArray[Any] = np.log([1.0, MACHINES[case.machine][4]])

    def steps(at: NDArray[Any]) -> NDArray[Any]:
        compute, rate = np.exp(at).tolist()
        predictor = Predictor(ScaleFactors(compute=compute), models)
        return np.log(
            [step_seconds(case, samples, c, predictor, rate) for c in ("none", "sdp4bit")]
        )

    for _ in range(NEWTON_STEPS):
        here = steps(logs)
        slopes = [(steps(logs + DIFFERENCE * one) - here) / DIFFERENCE for one in np.eye(2)]
        logs = logs - np.clip(np.linalg.solve(np.array(slopes).T, here - wanted), -1, 1)
    return Calibration(*np.exp(logs).tolist())


def step_seconds(
    case: Case, samples: int, compress: str, predictor: Predictor, rate: float
) -> float:
    """Predicted seconds of a step whose gradients and weights travel as `compress` says."""
    row = case.row(samples, rate)
    architecture, run = read_architecture(row), read_run(row)
    execution, slowdown = execution_model_of(run), predictor.factors.compute
    execution = replace(execution, dispatch_seconds=slowdown * execution.dispatch_seconds)
    cluster = scaled_cluster(cluster_of(run), predictor.factors)
    prices = predictor.prices(architecture, run, cluster, execution)
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
    models: dict[Any, Any] = {}
    machines = {machine: Calibration(1.0, numbers[4]) for machine, numbers in MACHINES.items()}
    within, judged = list[bool](), list(cases(options.tables))
    if options.calibrated:
        smallest = {case.machine: case for case in reversed(judged)}
        for machine, case in smallest.items():
            machines[machine] = calibrated(case, options.samples, models)
            compute, rate = machines[machine]
            print(
                f"{machine}: devices and hosts {compute:.2f} times as slow, {rate:.1f} Gbit/s per device"
            )
        judged = [case for case in judged if case not in smallest.values()]
    print("model     machine  layout     plain s  sdp4bit s  predicted  published  error  auto")
    for case in judged:
        predictor = Predictor(ScaleFactors(compute=machines[case.machine].compute), models)
        plain, coded, chosen = (
            step_seconds(case, options.samples, compress, predictor, machines[case.machine].rate)
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
