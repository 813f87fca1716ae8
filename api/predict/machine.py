"""The cluster of a run: a preset by the name of its device, with the network that the row names."""

from __future__ import annotations

from msgspec.structs import replace

from ...cost_model.device_names import memory_of, preset_of
from ...cost_model.hardware import NETWORK_SHARE, presets
from ...ir.devices.cluster import Cluster, Device, Link
from .run import RunConfig, UnmodelledError

# Bytes of a nominal gigabyte of a device, as drivers report them: 79.2 GiB of an A100's 80
GIGABYTE = 0.99 * 2**30


def fast_group(run: RunConfig, domain: int) -> int:
    """Devices that the fast links join: a node's, or more where their domain is wider than a node
    and a divisor of the devices lets it be filled."""
    wide = max(n for n in range(1, min(domain, run.devices) + 1) if run.devices % n == 0)
    return max(min(run.devices_per_node, run.devices), wide)


def cluster_of(run: RunConfig) -> Cluster:
    """Nodes of the run's size joined by its network."""
    if "+" in run.device:
        raise UnmodelledError(
            f"gpu {run.device!r}: devices of several kinds are not predicted by rows"
        )
    preset = preset_of(run.device, run.device_memory_gb)
    if preset is None:
        raise UnmodelledError(
            f"gpu {run.device!r} is not known; `plait clusters` lists those that are"
        )
    device, links = presets()[preset]
    per_node = fast_group(run, links["scale_up"].domain)
    if run.devices % per_node:
        raise UnmodelledError(f"{run.devices} devices do not fill nodes of {per_node}")
    network = links["network"]
    rate = run.network_gbit_per_second / 8 * NETWORK_SHARE or network.gb_per_s
    inside = links["scale_up"]
    levels = [Link("scale_up", per_node, inside.latency_us * 1e-6, inside.gb_per_s * 1e9)]
    if run.devices > per_node:
        nodes = run.devices // per_node
        levels.insert(0, Link("network", nodes, network.latency_us * 1e-6, rate * 1e9))
    return Cluster(
        preset, with_memory(device, run.device_memory_gb or memory_of(run.device)), tuple(levels)
    )


def with_memory(device: Device, memory_gb: float) -> Device:
    """The device with its nominal memory, or that of a row, in the bytes that a driver reports."""
    nominal = memory_gb or device.memory_bytes / 1e9
    return replace(device, memory_bytes=int(nominal * GIGABYTE))
