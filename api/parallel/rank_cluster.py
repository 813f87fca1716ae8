"""The cluster of the ranks at hand, as the machine says it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from ...cost_model.hardware import local_cluster, preset_devices
from ...ir.devices.cluster import Cluster
from ...ir.devices.cluster_file import parse_cluster
from ...ir.devices.mixed import remaining
from ...ir.plan.plan import Plan


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


def devices_left(plan: Plan, left: Sequence[int]) -> Cluster:
    """The cluster of a plan with the devices of these ranks alone."""
    cluster = plan.cluster
    sizes = [(number, part.devices) for number, part in enumerate(cluster.parts)]
    if plan.groups:
        sizes = [(group.part, group.devices) for group in plan.groups]
    parts = [part for part, size in sizes for _ in range(size)] or [0] * cluster.devices
    counts = Counter(parts[rank] for rank in left)
    return remaining(cluster, [counts[number] for number in range(len(cluster.parts) or 1)])


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
