"""Heterogeneous clusters (parts with different devices, joined by a link) and plans for them.

    replica 0   2 h100: layers 0-20  ->  2 a100: layers 21-31      12 micro-batches
    replica 1   1 a100: layers 0-31                                 4 micro-batches

A pipeline replica has all layers, partitioned for its own devices, and runs its share of the
micro-batches. Replicas sum their gradients once per step. (FlashFlex, Yan et al. 2024.)
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from ..errors import FileError
from ..plan.memory_action import MemoryAction
from ..plan.plan import Optimizer, Span, Stage
from ..plan.strategy import Strategy
from .cluster import (
    MAX_DEVICES,
    Cluster,
    Device,
    Link,
    cluster_from_tables,
    parse_cluster,
    parse_link,
    read_toml,
)


class HeterogeneousCluster(msgspec.Struct, frozen=True):
    """Clusters joined by a link; ranks are numbered part by part."""

    name: str
    parts: tuple[Cluster, ...]
    link: Link

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError("parts: at least two are needed")
        if self.devices > MAX_DEVICES:
            raise ValueError(f"parts: {self.devices} devices")

    @property
    def devices(self) -> int:
        """Devices of all parts."""
        return sum(part.devices for part in self.parts)

    @property
    def first_ranks(self) -> tuple[int, ...]:
        """The rank of every part's first device."""
        return tuple(accumulate((part.devices for part in self.parts[:-1]), initial=0))

    def memory_limit(self, part: int, requested: int | None) -> int:
        """Bytes per device of a part that a plan may use; `requested` is the user's limit, if any."""
        capacity = self.parts[part].device.memory_bytes
        return capacity if requested is None else min(capacity, requested)

    def as_slowest_device(self) -> Cluster:
        """A homogeneous cluster of as many devices, each the worst of all in everything."""
        devices = [part.device for part in self.parts]
        slowest = min(devices, key=lambda d: d.peak("bfloat16") * d.achievable * d.sustained)
        device = replace(
            slowest,
            memory_bytes=min(d.memory_bytes for d in devices),
            memory_bandwidth_bytes_per_second=min(
                d.memory_bandwidth_bytes_per_second for d in devices
            ),
        )
        return Cluster(self.name, device, (replace(self.link, size=self.devices),))

    def as_homogeneous(self) -> Cluster | None:
        """One homogeneous cluster of all parts; None where they differ."""
        first = self.parts[0]
        if any((p.device, p.levels) != (first.device, first.levels) for p in self.parts):
            return None
        return Cluster(
            self.name, first.device, (replace(self.link, size=len(self.parts)), *first.levels)
        )

    def __str__(self) -> str:
        return f"{self.name}: " + " + ".join(f"{p.devices} × {p.device.kind}" for p in self.parts)


def parse_any_cluster(path: Path, kinds: dict[str, Device]) -> Cluster | HeterogeneousCluster:
    """Read a cluster from TOML: heterogeneous where the file has `[[part]]` tables, each like a
    cluster's file, and a `[link]` between them. Raises FileError with the key that is wrong."""
    data = read_toml(path)
    tables = data.get("part")
    if tables is None:
        return parse_cluster(path, kinds)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise FileError(f"{path}: part: tables are needed")
    try:
        parts = tuple(
            cluster_from_tables(path, {"name": f"part {number}", **table}, kinds)
            for number, table in enumerate(tables)
        )
        link = parse_link({"size": len(parts), **data.get("link", {})}, f"{path}: link")
        return HeterogeneousCluster(str(data.get("name", path.stem)), parts, link)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def sub_cluster(part: Cluster, width: int) -> Cluster:
    """A cluster of `width` neighbouring devices of a part, innermost levels first."""
    levels: list[Link] = []
    remaining = width
    for level in reversed(part.levels):
        size = min(level.size, remaining)
        size = size if remaining % size == 0 else remaining
        levels.insert(0, replace(level, size=size))
        remaining //= size
        if remaining == 1:
            break
    assert prod(level.size for level in levels) == width, f"{width} devices of {part}"
    return Cluster(part.name, part.device, tuple(levels))


class DeviceGroup(msgspec.Struct, frozen=True):
    """Devices of one stage of a replica: neighbours of a part from its `first_device` on, with their
    strategy, their memory action, and the stage they run (calls, times, bytes)."""

    part: int
    first_device: int
    strategy: Strategy
    memory: MemoryAction
    stage: Stage

    @property
    def width(self) -> int:
        """Number of devices."""
        return self.strategy.devices

    @property
    def calls(self) -> Span:
        """Its calls, [first, last)."""
        return self.stage.model_chunks[0]

    def ranks(self, cluster: HeterogeneousCluster) -> range:
        """Ranks of its devices in the cluster."""
        start = cluster.first_ranks[self.part] + self.first_device
        return range(start, start + self.width)


class PipelineReplica(msgspec.Struct, frozen=True):
    """A pipeline of device groups; it runs `micro_batches` of a step in `seconds`."""

    micro_batches: int
    device_groups: tuple[DeviceGroup, ...]
    seconds: float = 0.0


class HeterogeneousPlan(msgspec.Struct, frozen=True):
    """A plan for a heterogeneous cluster, with its predicted cost.

    `micro_batch`: samples per micro-batch. `single_part_seconds`: step time of each part without the
    others, and last of all devices as if they were the slowest; None where that does not fit.
    """

    model: str
    model_digest: str
    cluster: HeterogeneousCluster
    global_batch: int
    micro_batch: int
    precision: str
    optimizer: Optimizer
    replicas: tuple[PipelineReplica, ...]
    sync_seconds: float
    step_seconds: float
    tokens_per_second: float
    lower_bound_seconds: float
    single_part_seconds: tuple[float | None, ...] = ()
    calls: tuple[str, ...] = ()
    status: Literal["optimal", "feasible"] = "feasible"
    memory_limit_bytes: int | None = None  # the user's limit per device
    complete: bool = True

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.lower_bound_seconds / self.step_seconds)

    def memory_limit(self, group: DeviceGroup) -> int:
        """Bytes per device of a group that a plan may use."""
        return self.cluster.memory_limit(group.part, self.memory_limit_bytes)
