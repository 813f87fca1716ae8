"""The cluster of a run: a preset by the name of its device, with the network that the row names."""

from __future__ import annotations

import re

from msgspec.structs import replace

from ...cost_model.hardware import NETWORK_SHARE, presets
from ...ir.devices.cluster import Cluster, Device, Link
from .run import RunConfig, UnmodelledError

# Bytes of a nominal gigabyte of a device, as drivers report them: 79.2 GiB of an A100's 80
GIGABYTE = 0.99 * 2**30


def preset_of(name: str, memory_gb: float) -> str:
    """The preset whose name begins the device's; of several, the nearest in memory."""
    families: dict[str, list[str]] = {}
    for preset in presets():
        families.setdefault(normalized(re.sub(r"-\d+$", "", preset)), []).append(preset)
    wanted_name = normalized(name)
    matching = [f for f in families if re.match(rf"{f}(?!\d)|{f}\d*$", wanted_name)]
    # `MI250` of `mi250x`, `v5e` of `tpu-v5e`
    matching = matching or [
        f for f in families if re.fullmatch(rf"(tpu)?{re.escape(wanted_name)}x?", f)
    ]
    if not matching:
        raise UnmodelledError(f"gpu {name!r} is not known; known: {', '.join(families)}")
    members = families[max(matching, key=len)]
    wanted = memory_gb * 1e9 or max(presets()[m].device.memory_bytes for m in members)
    return min(members, key=lambda m: abs(presets()[m].device.memory_bytes - wanted))


def normalized(name: str) -> str:
    """Letters and digits of a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def fast_group(run: RunConfig, domain: int) -> int:
    """Devices that the fast links join: a node's, or more where their domain is wider than a node
    and a divisor of the devices lets it be filled."""
    wide = max(n for n in range(1, min(domain, run.devices) + 1) if run.devices % n == 0)
    return max(min(run.devices_per_node, run.devices), wide)


def cluster_of(run: RunConfig) -> Cluster:
    """Nodes of the run's size joined by its network."""
    preset = preset_of(run.device, run.device_memory_gb)
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
    return Cluster(preset, with_memory(device, run.device_memory_gb), tuple(levels))


def with_memory(device: Device, memory_gb: float) -> Device:
    """The device with its nominal memory, or that of a row, in the bytes that a driver reports."""
    nominal = memory_gb or device.memory_bytes / 1e9
    return replace(device, memory_bytes=int(nominal * GIGABYTE))
