"""Heterogeneous clusters: parts with different devices, joined by a link."""

from __future__ import annotations

from itertools import accumulate
from math import prod

import msgspec
from msgspec.structs import replace

from .cluster import MAX_DEVICES, Cluster, Link


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
