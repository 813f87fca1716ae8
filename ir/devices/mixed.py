"""Mixed clusters: parts of different kinds of devices, joined by links."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from msgspec.structs import replace

from .cluster import Cluster, Link, PartLink


def mixed_cluster(
    name: str, parts: Sequence[Cluster], link: Link, part_links: Sequence[PartLink] = ()
) -> Cluster:
    """Clusters of one kind each, joined by `link`, or where `part_links` say so by another.

    Raises ValueError for fewer than two parts.
    """
    if len(parts) < 2:
        raise ValueError("parts: at least two are needed")
    level = replace(link, size=sum(part.devices for part in parts))
    devices = [part.device for part in parts]
    slowest = min(devices, key=lambda d: d.peak("bfloat16") * d.achievable * d.sustained)
    device = replace(
        slowest,
        memory_bytes=min(d.memory_bytes for d in devices),
        memory_bandwidth_bytes_per_second=min(d.memory_bandwidth_bytes_per_second for d in devices),
    )
    return Cluster(name, device, (level,), tuple(parts), tuple(part_links))


def as_slowest_devices(cluster: Cluster) -> Cluster:
    """A uniform cluster of as many devices, each the worst of all in everything."""
    return replace(cluster, parts=(), part_links=())


def as_uniform(cluster: Cluster) -> Cluster | None:
    """A mixed cluster whose parts are equal as a uniform one; None where they differ."""
    first = cluster.parts[0]
    if cluster.part_links or any(replace(p, name=first.name) != first for p in cluster.parts):
        return None
    levels = (replace(cluster.levels[0], size=len(cluster.parts)), *first.levels)
    return Cluster(cluster.name, first.device, levels, rates=first.rates, zone=first.zone)


def sub_cluster(part: Cluster, width: int) -> Cluster:
    """A cluster of `width` neighbouring devices of a uniform one, innermost levels first."""
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
    return replace(part, levels=tuple(levels))


def memory_limit(part: Cluster, requested: int | None) -> int:
    """Bytes per device of a part that a plan may use; `requested` is the user's limit, if any."""
    capacity = part.device.memory_bytes
    return capacity if requested is None else min(capacity, requested)


def remaining(cluster: Cluster, counts: Sequence[int]) -> Cluster:
    """What is left of a cluster of which `counts` devices stay in every part (in its one kind where it
    has no parts). Devices that no longer fill groups of equal size are joined by the outermost link."""
    pairs = zip(cluster.parts or (cluster,), counts, strict=True)
    left = {number: _narrowed(part, n) for number, (part, n) in enumerate(pairs) if n}
    if len(left) == 1:
        return next(iter(left.values()))
    place = {number: at for at, number in enumerate(left)}
    links = tuple(
        replace(x, one=place[x.one], other=place[x.other])
        for x in cluster.part_links
        if {x.one, x.other} <= left.keys()
    )
    return mixed_cluster(cluster.name, tuple(left.values()), cluster.levels[0], links)


def _narrowed(part: Cluster, devices: int) -> Cluster:
    """A cluster of one kind with fewer devices."""
    inner = prod(level.size for level in part.levels[1:])
    if devices % inner == 0 or devices < inner:
        return sub_cluster(part, devices)
    return replace(part, levels=(replace(part.levels[0], size=devices),))
