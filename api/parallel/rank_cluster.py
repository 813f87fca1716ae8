"""The cluster of the ranks at hand, as the machine says it is."""

from __future__ import annotations

import os

from msgspec.structs import replace

from ...cost_model.hardware import local_cluster, preset_devices
from ...ir.devices.cluster import Cluster
from ...ir.devices.cluster_file import parse_cluster


def cluster_of_ranks(ranks: int, *, cuda: bool) -> Cluster:
    """`ranks` ranks, as many on every node as torchrun started here: CUDA devices or processors.

    Devices, their memory and links are what drivers and tools say, and the preset's where they say
    nothing. Raises UsageError for a device that no preset has.
    """
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    nodes = max(ranks // ranks_per_node, 1)
    if cuda:
        return _of_devices(nodes, ranks_per_node)
    cluster = local_cluster(f"local:{ranks}")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return replace(cluster, device=replace(cluster.device, memory_bytes=physical // ranks_per_node))


def _of_devices(nodes: int, devices: int) -> Cluster:
    from ...runtime.launch.scratch import scratch_folder
    from ...runtime.measurement.inventory import answer, take_inventory
    from ..formats.machine_file import machine_file

    seen = take_inventory(answer)
    used = replace(seen, names=seen.names[:devices], memory_gb=seen.memory_gb[:devices])
    with scratch_folder("cluster") as folder:
        file = folder / "machine.toml"
        file.write_text(machine_file(used, nodes), encoding="utf-8")
        cluster = parse_cluster(file, preset_devices())
    memory = min(int(gb * 1e9) for gb in used.memory_gb)
    return replace(cluster, device=replace(cluster.device, memory_bytes=memory))
