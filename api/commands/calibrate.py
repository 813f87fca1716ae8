"""`plait calibrate`: a cluster file from measurements of this machine, or from a log of steps."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ...cost_model.calibration.curves import cluster_of, cluster_toml
from ...cost_model.calibration.fit import fit
from ...ir.devices.cluster import Cluster
from ...ir.devices.measured import Machine
from ...ir.errors import UsageError
from .. import files
from ..step_log import read_steps
from .common import show

MOST_RANKS = 64
TIMEOUT_SECONDS = 3600.0


def run(options: argparse.Namespace) -> int:
    if options.log:
        return fitted(options)
    start = time.perf_counter()
    made = measured(options.ranks, options.quick, Path(options.output).stem)
    files.write_text(Path(options.output), cluster_toml(made))
    if options.json:
        figures = {**as_json(options.output, made), "time_s": time.perf_counter() - start}
        show(figures)
    else:
        print(summary(options.output, made))
    return 0


def fitted(options: argparse.Namespace) -> int:
    """Scale the cluster of a log's plans to the steps that were measured."""
    if options.quick or options.ranks:
        raise UsageError("--log measures nothing: leave out --quick and --ranks")
    steps = read_steps(Path(options.log))
    source = f"fitted to {len(steps)} steps of {Path(options.log).name}"
    found = fit(steps, steps[0].plan.cluster, source)
    made = replace(found.cluster, name=Path(options.output).stem)
    files.write_text(Path(options.output), cluster_toml(made))
    if options.json:
        figures = {
            **as_json(options.output, made),
            "steps": len(steps),
            "factors": msgspec.to_builtins(found.factors),
            "error_before": found.error_before,
            "error_after": found.error_after,
        }
        show(figures)
    else:
        f = found.factors
        print(
            f"{options.output}: {made}\n"
            f"  compute ×{f.compute:.3g}, communication ×{f.communication:.3g}, "
            f"overhead ×{f.overhead:.3g}\n"
            f"  {len(steps)} steps, median error {found.error_before:.1%} before, "
            f"{found.error_after:.1%} after"
        )
    return 0


def as_json(output: str, made: Cluster) -> dict[str, Any]:
    device = made.device
    return {
        "output": output,
        "ranks": made.devices,
        "kind": device.kind,
        "flops_per_s": device.peak_flops,
        "memory_bytes_per_s": device.memory_bandwidth_bytes_per_second,
        "launch_s": device.launch_overhead_seconds,
        "link_bytes_per_s": made.levels[0].bandwidth_bytes_per_second,
        "link_latency_s": made.levels[0].latency_seconds,
        "curves": len(device.curves) + len(made.levels[0].curves),
        "source": device.source,
    }


def measured(ranks: int | None, quick: bool, name: str) -> Cluster:
    """Measure this machine with all `ranks` at work (default: its GPUs, or its processors)."""
    from ...runtime.launch.launch import launch

    count = ranks or default_ranks()
    if not 1 <= count <= MOST_RANKS:
        raise UsageError(f"--ranks {count}: between 1 and {MOST_RANKS} can be measured")
    print(f"measuring with {count} ranks", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="plait-calibrate-") as folder:
        out = Path(folder, "machine.json")
        target = [
            "-m",
            "plait.runtime.measurement.measure",
            str(out),
            *(["quick"] if quick else []),
        ]
        launch(count, target, timeout_seconds=TIMEOUT_SECONDS)
        return cluster_of(msgspec.json.decode(out.read_bytes(), type=Machine), name)


def default_ranks() -> int:
    import os

    import torch

    return torch.cuda.device_count() or min(os.cpu_count() or 1, MOST_RANKS)


def summary(output: str, made: Cluster) -> str:
    device, link = made.device, made.levels[0]
    rates = ", ".join(f"{dtype} {rate / 1e9:.4g}" for dtype, rate in device.peak_flops.items())
    return "\n".join(
        [
            f"{output}: {made}",
            f"  products   {rates} Gflop/s",
            f"  memory     {device.memory_bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
            f"{device.launch_overhead_seconds * 1e6:.3g} µs per operator",
            f"  links      {link.bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
            f"{link.latency_seconds * 1e6:.3g} µs",
            f"  {len(device.curves)} curves of operators, {len(link.curves)} of collectives",
            f"  {device.source}",
        ]
    )
