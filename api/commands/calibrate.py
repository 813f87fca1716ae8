"""`plait calibrate`: a cluster file from measurements of this machine, or from a log of steps."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from ...ir.errors import UsageError
from .arguments import add_json
from .output import print_json

if TYPE_CHECKING:
    from ...ir.devices.cluster import Cluster

MOST_RANKS = 64
TIMEOUT_SECONDS = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer sizes, less than two minutes")
    parser.add_argument(
        "--ranks", type=int, help="at work at the same time; default: GPUs or processors"
    )
    parser.add_argument(
        "--log",
        metavar="STEPS.jsonl",
        help="do not measure: fit the cluster of plans to their steps, one a line: "
        '{"plan": "plan.json", "step_seconds": 0.41, "peak_bytes": 1000}',
    )
    parser.add_argument("-o", "--output", default="machine.toml", metavar="FILE")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...cost_model.calibration.curves import cluster_toml
    from ..formats import files

    if arguments.log:
        return _run_log(arguments)
    start = time.perf_counter()
    output = Path(arguments.output)
    cluster = measured(arguments.ranks, arguments.quick, output.stem)
    files.write_text(output, cluster_toml(cluster))
    if arguments.json:
        seconds = time.perf_counter() - start
        print_json({**_cluster_json(arguments.output, cluster), "time_s": seconds})
    else:
        print(_cluster_text(arguments.output, cluster))
    return 0


def _run_log(arguments: argparse.Namespace) -> int:
    """Scale the cluster of a log's plans to the steps that were measured."""
    from ...cost_model.calibration.curves import cluster_toml
    from ...cost_model.calibration.fit import fit
    from ..formats import files
    from ..plans.step_log import read_steps

    if arguments.quick or arguments.ranks:
        raise UsageError("--log measures nothing: leave out --quick and --ranks")
    log, output = Path(arguments.log), Path(arguments.output)
    steps = read_steps(log)
    result = fit(steps, steps[0].plan.cluster, f"fitted to {len(steps)} steps of {log.name}")
    cluster = replace(result.cluster, name=output.stem)
    files.write_text(output, cluster_toml(cluster))
    if arguments.json:
        fields = {
            "steps": len(steps),
            "factors": msgspec.to_builtins(result.factors),
            "error_before": result.error_before,
            "error_after": result.error_after,
        }
        print_json(_cluster_json(arguments.output, cluster) | fields)
    else:
        factors = result.factors
        print(
            f"{arguments.output}: {cluster}\n"
            f"  compute ×{factors.compute:.3g}, communication ×{factors.communication:.3g}, "
            f"overhead ×{factors.overhead:.3g}\n"
            f"  {len(steps)} steps, median error {result.error_before:.1%} before, "
            f"{result.error_after:.1%} after"
        )
    return 0


def _cluster_json(output: str, cluster: Cluster) -> dict[str, Any]:
    device = cluster.device
    return {
        "output": output,
        "ranks": cluster.devices,
        "kind": device.kind,
        "flops_per_s": device.peak_flops,
        "memory_bytes_per_s": device.memory_bandwidth_bytes_per_second,
        "launch_s": device.launch_overhead_seconds,
        "link_bytes_per_s": cluster.levels[0].bandwidth_bytes_per_second,
        "link_latency_s": cluster.levels[0].latency_seconds,
        "curves": len(device.curves) + len(cluster.levels[0].curves),
        "source": device.source,
    }


def measured(ranks: int | None, quick: bool, name: str) -> Cluster:
    """Measure this machine with `ranks` ranks at work at once (default: its GPUs or processors)."""
    from ...cost_model.calibration.curves import cluster_of
    from ...ir.devices.measured import MachineCosts
    from ...runtime.launch.launch import launch
    from ...runtime.launch.scratch import scratch_folder

    count = ranks or _default_ranks()
    if not 1 <= count <= MOST_RANKS:
        raise UsageError(f"--ranks {count}: between 1 and {MOST_RANKS} can be measured")
    print(f"measuring with {count} ranks", file=sys.stderr)
    with scratch_folder("calibrate") as folder:
        out = folder / "machine.json"
        target = [
            "-m",
            "plait.runtime.measurement.measure",
            str(out),
            *(["quick"] if quick else []),
        ]
        launch(count, target, timeout_seconds=TIMEOUT_SECONDS)
        return cluster_of(msgspec.json.decode(out.read_bytes(), type=MachineCosts), name)


def _default_ranks() -> int:
    import torch

    return torch.cuda.device_count() or min(os.cpu_count() or 1, MOST_RANKS)


def _cluster_text(output: str, cluster: Cluster) -> str:
    device, link = cluster.device, cluster.levels[0]
    rates = ", ".join(f"{dtype} {rate / 1e9:.4g}" for dtype, rate in device.peak_flops.items())
    return "\n".join(
        [
            f"{output}: {cluster}",
            f"  products   {rates} Gflop/s",
            f"  memory     {device.memory_bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
            f"{device.launch_overhead_seconds * 1e6:.3g} µs per operator",
            f"  links      {link.bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
            f"{link.latency_seconds * 1e6:.3g} µs",
            f"  {len(device.curves)} curves of operators, {len(link.curves)} of collectives",
            f"  {device.source}",
        ]
    )
