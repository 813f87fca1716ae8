"""`plait calibrate`: a cluster file from measurements of this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from ..cost_model.calibrate import cluster_of, cluster_toml
from ..ir.cluster import Cluster
from ..ir.errors import UsageError
from ..ir.measured import Machine
from . import documents

MOST_RANKS = 64
TIMEOUT_SECONDS = 3600.0


def run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    made = measured(options.ranks, options.quick, Path(options.output).stem)
    documents.write_text(Path(options.output), cluster_toml(made))
    device = made.device
    figures = {
        "output": options.output, "ranks": made.devices, "kind": device.kind,
        "flops_per_s": device.peak_flops,
        "memory_bytes_per_s": device.memory_bandwidth_bytes_per_second,
        "launch_s": device.launch_overhead_seconds,
        "link_bytes_per_s": made.levels[0].bandwidth_bytes_per_second,
        "link_latency_s": made.levels[0].latency_seconds,
        "curves": len(device.curves) + len(made.levels[0].curves),
        "time_s": time.perf_counter() - start, "source": device.source,
    }  # fmt: skip
    print(json.dumps(figures, indent=1) if options.json else summary(options.output, made))
    return 0


def measured(ranks: int | None, quick: bool, name: str) -> Cluster:
    """Measure this machine with all `ranks` at work (default: its GPUs, or its processors)."""
    from ..runtime.launch import launch

    count = ranks or default_ranks()
    if not 1 <= count <= MOST_RANKS:
        raise UsageError(f"--ranks {count}: between 1 and {MOST_RANKS} can be measured")
    print(f"measuring with {count} ranks", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="plait-calibrate-") as folder:
        out = Path(folder, "machine.json")
        target = ["-m", "plait.runtime.measure", str(out), *(["quick"] if quick else [])]
        launch(count, target, timeout_seconds=TIMEOUT_SECONDS)
        return cluster_of(msgspec.json.decode(out.read_bytes(), type=Machine), name)


def default_ranks() -> int:
    import os

    import torch

    return torch.cuda.device_count() or min(os.cpu_count() or 1, MOST_RANKS)


def summary(output: str, made: Cluster) -> str:
    device, link = made.device, made.levels[0]
    rates = ", ".join(f"{dtype} {rate / 1e9:.4g}" for dtype, rate in device.peak_flops.items())
    return "\n".join([
        f"{output}: {made}",
        f"  products   {rates} Gflop/s",
        f"  memory     {device.memory_bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
        f"{device.launch_overhead_seconds * 1e6:.3g} µs per operator",
        f"  links      {link.bandwidth_bytes_per_second / 1e9:.3g} GB/s, "
        f"{link.latency_seconds * 1e6:.3g} µs",
        f"  {len(device.curves)} curves of operators, {len(link.curves)} of collectives",
        f"  {device.source}",
    ])  # fmt: skip
