"""Scale a cluster's compute, communication and fixed costs by factors."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ..ir.devices.cluster import Cluster, Device, Link
from ..ir.devices.curve import Curve


class ScaleFactors(msgspec.Struct, frozen=True):
    """Slowdown factors of compute (flops and memory traffic), communication (message bytes) and
    overhead (launches, latencies, the smallest seconds of a measured curve)."""

    compute: float = 1.0
    communication: float = 1.0
    overhead: float = 1.0


def scaled_cluster(cluster: Cluster, factors: ScaleFactors) -> Cluster:
    """The cluster with its rates, fixed costs and measured curves scaled."""
    levels = tuple(scaled_link(link, factors) for link in cluster.levels)
    return replace(cluster, device=scaled_device(cluster.device, factors), levels=levels)


def scaled_device(device: Device, factors: ScaleFactors) -> Device:
    compute, fixed = factors.compute, factors.overhead
    return replace(
        device,
        peak_flops={dtype: rate / compute for dtype, rate in device.peak_flops.items()},
        memory_bandwidth_bytes_per_second=device.memory_bandwidth_bytes_per_second / compute,
        launch_overhead_seconds=device.launch_overhead_seconds * fixed,
        curves=tuple(_curve(curve, fixed, compute) for curve in device.curves),
    )


def scaled_link(link: Link, factors: ScaleFactors) -> Link:
    sent, fixed = factors.communication, factors.overhead
    return replace(
        link,
        bandwidth_bytes_per_second=link.bandwidth_bytes_per_second / sent,
        latency_seconds=link.latency_seconds * fixed,
        curves=tuple(_curve(curve, fixed, sent) for curve in link.curves),
    )


def _curve(curve: Curve, fixed: float, rest: float) -> Curve:
    least = curve.seconds[0]
    return replace(curve, seconds=tuple(fixed * least + rest * (s - least) for s in curve.seconds))
