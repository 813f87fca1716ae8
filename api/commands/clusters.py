"""`plait clusters`: the names that --cluster knows, with where their numbers come from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ..serve.verb_reports import ClusterReport
from .arguments import add_json
from .output import print_json

if TYPE_CHECKING:
    from ...ir.devices.cluster import Cluster

NUMBERS = (
    ("memory_gb", "memory", "{:.0f} GB"),
    ("memory_gb_per_s", "memory bandwidth", "{:.0f} GB/s"),
    ("achievable", "largest products reach", "{:.1%} of the peak"),
    ("sustained", "of that in long runs", "{:.0%}"),
    ("launch_us", "start of a kernel", "{:.1f} µs"),
    ("runtime_gb", "the runtime's own memory", "{:.1f} GB"),
    ("host_gb_per_s", "to host memory", "{:.0f} GB/s"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="all numbers of one cluster")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name:
        return _one(arguments)
    rows = list(cluster_rows())
    if arguments.json:
        print_json({"clusters": [msgspec.to_builtins(row) for row in rows]})
    else:
        print("\n".join(_table(rows)))
    return 0


def cluster_rows() -> Iterator[ClusterReport]:
    """Every preset as the largest domain of its scale-up links, then every machine of a cloud."""
    from ...cost_model.hardware import cloud_shapes, presets

    for name, (device, links) in presets().items():
        yield _row(name, f"2x{name}x{min(links['scale_up'].domain, 72)}", device.source)
    for name, shape in cloud_shapes().items():
        yield _row(name, f"2x{name}", shape.source)


def _row(name: str, pair: str, source: str) -> ClusterReport:
    """The row of a name; `pair`: two such groups, between which the network is."""
    from ...cost_model.hardware import load_cluster

    network, inner = (cluster := load_cluster(pair)).levels
    return ClusterReport(
        name,
        cluster.device.kind,
        inner.size,
        cluster.device.memory_bytes / 1e9,
        cluster.device.peak("bfloat16") / 1e12,
        inner.bandwidth_bytes_per_second / 1e9,
        network.bandwidth_bytes_per_second / 1e9,
        source,
    )


def _table(rows: list[ClusterReport]) -> Iterator[str]:
    yield f"{'name':<16}{'devices':>16}{'memory':>9}{'bf16':>13}{'inside':>11}{'between':>11}  source"
    for row in rows:
        devices, tflops = f"{row.devices} × {row.device}", f"{row.bf16_tflops:.0f} TFLOP/s"
        yield (
            f"{row.name:<16}{devices:>16}{row.memory_gb:>6.0f} GB{tflops:>13}"
            f"{row.scale_up_gb_per_s:>6.0f} GB/s{row.network_gb_per_s:>6.1f} GB/s  {row.source}"
        )
    yield ""
    yield "16x8xh100: 16 nodes of 8 · 16x8xh100@400: 400 Gbit/s per device between nodes"
    yield "2xgb200x72: 2 NVLink domains of 72 · 16xp5: 16 machines · 8xh100+8xa100-80: a mixture"


def _one(arguments: argparse.Namespace) -> int:
    from ...cost_model.hardware import load_cluster

    cluster = load_cluster(arguments.name)
    if arguments.json:
        print_json(msgspec.to_builtins(cluster))
    else:
        print("\n".join(_numbers(cluster)))
    return 0


def _numbers(cluster: Cluster) -> Iterator[str]:
    """Every number of a cluster, with its source."""
    device = cluster.device
    values = {
        "memory_gb": device.memory_bytes / 1e9,
        "memory_gb_per_s": device.memory_bandwidth_bytes_per_second / 1e9,
        "achievable": device.achievable,
        "sustained": device.sustained,
        "launch_us": device.launch_overhead_seconds * 1e6,
        "runtime_gb": device.runtime_overhead_bytes / 1e9,
        "host_gb_per_s": device.host_bandwidth_bytes_per_second / 1e9,
    }
    yield str(cluster)
    for key, what, form in NUMBERS:
        yield f"  {what:<26}{form.format(values[key]):<20}  {device.source_of(key)}"
    for dtype, rate in device.peak_flops.items():
        yield f"  {dtype:<26}{rate / 1e12:<7.0f}{'TFLOP/s':<13}  {device.source_of('tflops')}"
    for link in cluster.levels:
        rate = f"{link.bandwidth_bytes_per_second / 1e9:.1f} GB/s per device"
        yield f"  {link.name} of {link.size:<{23 - len(link.name)}}{rate:<20}  {link.source}"
