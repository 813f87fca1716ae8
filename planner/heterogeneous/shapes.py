"""Shapes of plans: widths of device groups, and how they form pipeline replicas.

Every part is divided into groups of one width, parts of equal devices alike. Replicas stay in a
region of the cluster (`regions`), of a partition or one region alone. In a region, groups are dealt
out to replicas, the strongest first, to the replicas with the least power so far; in a replica,
parts follow each other along fast links.

    2 a, 3 b in 1 replica   a a b b b   |  b b b a a
    in 2 replicas           a b / a b b |  b a / b b a
    regions of one part     a a / b b b
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from .group_prices import GroupType
from .regions import Partition, Region, link_graph, partitions, paths

ReplicaShape = tuple[GroupType, ...]  # the device groups of a pipeline replica, in order
PlanShape = tuple[ReplicaShape, ...]
MOST_ORDERS = 6  # of the parts in a replica
MOST_STAGES = 64


class PartGroups(NamedTuple):
    """Groups of a part: their type, how many there are, and the relative speed of one."""

    type: GroupType
    groups: int
    power: float


class NearParts(NamedTuple):
    """Where pipelines stay: partitions of the parts and regions alone, and orders of their parts."""

    partitions: tuple[Partition, ...]
    orders: Mapping[Region, Sequence[tuple[int, ...]]]


def near_parts(cluster: Cluster) -> NearParts:
    """Every partition of a cluster and every region of several parts alone."""
    wholes, graph = partitions(cluster), link_graph(cluster)
    regions = dict.fromkeys(region for whole in wholes for region in whole)
    orders = {region: paths(graph, region)[:MOST_ORDERS] for region in regions}
    alone = [(region,) for region in regions if len(region) > 1]
    return NearParts(tuple(dict.fromkeys([*wholes, *alone])), orders)


def shapes(cluster: Cluster, near: NearParts, strength: Sequence[float]) -> Iterator[PlanShape]:
    """Every shape in every partition; `strength`: relative speed of one device of each part."""
    parts = cluster.parts or (cluster,)
    seen: set[PlanShape] = set()
    for widths in widths_of_parts(parts):
        groups = [
            PartGroups(GroupType(part, width), parts[part].devices // width, width * strength[part])
            for part, width in enumerate(widths)
        ]
        for partition in near.partitions:
            for shape in partition_shapes(groups, partition, near.orders):
                short_enough = max(map(len, shape)) <= MOST_STAGES
                if short_enough and all(shape) and shape not in seen:
                    seen.add(shape)
                    yield shape


def partition_shapes(
    groups: Sequence[PartGroups],
    partition: Partition,
    orders: Mapping[Region, Sequence[tuple[int, ...]]],
) -> Iterator[PlanShape]:
    """Shapes with as many replicas in every region, or as many as it has groups."""
    counts = {region: sum(groups[part].groups for part in region) for region in partition}
    for replicas in range(1, max(counts.values()) + 1):
        rows = [
            (orders[region], row)
            for region, count in counts.items()
            for row in deal_groups([groups[part] for part in region], min(replicas, count))
        ]
        for number in range(MOST_ORDERS):
            yield tuple(
                tuple(
                    groups[part].type
                    for part in paths[number % len(paths)]
                    for _ in range(row[groups[part].type])
                )
                for paths, row in rows
            )


def widths_of_parts(parts: Sequence[Cluster]) -> Iterator[tuple[int, ...]]:
    """Widths of the groups of every part; parts of as many equal devices have equal groups."""
    first_equal = [
        next(n for n, one in enumerate(parts) if _interchangeable(one, other)) for other in parts
    ]
    kinds = sorted(set(first_equal))
    for widths in product(*(widths_of(parts[n].devices) for n in kinds)):
        yield tuple(widths[kinds.index(n)] for n in first_equal)


def _interchangeable(one: Cluster, other: Cluster) -> bool:
    return one.device == other.device and one.devices == other.devices


def widths_of(devices: int) -> list[int]:
    """Widths of groups: divisors of `devices`, and 2 and 4 where they leave devices unused."""
    even = [n for n in range(1, devices + 1) if devices % n == 0]
    return even + [n for n in (2, 4) if n < devices and devices % n and devices // n > 0]


def deal_groups(parts: Sequence[PartGroups], replicas: int) -> list[dict[GroupType, int]]:
    """Number of groups of every type in each replica."""
    dealt: list[dict[GroupType, int]] = [{} for _ in range(replicas)]
    power = [0.0] * replicas
    for part in sorted(parts, key=lambda part: -part.power):
        per_replica, remainder = divmod(part.groups, replicas)
        weakest = sorted(range(replicas), key=lambda n: (power[n], n))
        for position, n in enumerate(weakest):
            dealt[n][part.type] = per_replica + (position < remainder)
            power[n] += dealt[n][part.type] * part.power
    return dealt
