"""Heterogeneous clusters: parts with different devices, joined by a link."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ..errors import FileError
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
