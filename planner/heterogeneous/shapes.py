"""Shapes of plans: widths of device groups, and how they form pipeline replicas.

Every part is divided into groups of one width. Groups are dealt out to replicas, the strongest
first, to the replicas with the least power so far; in a replica, parts follow each other in any
order.

    2 a, 3 b in 1 replica   a a b b b   |  b b b a a
    in 2 replicas           a b / a b b |  b a / b b a
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product

from ...ir.devices.cluster import Cluster
from .group_prices import GroupType

ReplicaShape = tuple[GroupType, ...]  # the device groups of a pipeline replica, in order
PlanShape = tuple[ReplicaShape, ...]
MOST_ORDERS = 6  # of the parts in a replica
MOST_STAGES = 64


def shapes(cluster: Cluster, strength: Sequence[float]) -> Iterator[PlanShape]:
    """Every shape that uses all parts; `strength`: relative speed of one device of each part."""
    parts = cluster.parts or (cluster,)
    widths = [widths_of(part.devices) for part in parts]
    for widths_of_parts in product(*widths):
        group_types = [GroupType(number, width) for number, width in enumerate(widths_of_parts)]
        counts = [part.devices // width for part, width in zip(parts, widths_of_parts, strict=True)]
        seen: set[PlanShape] = set()
        for replicas in range(1, sum(counts) + 1):
            dealt = deal_groups(group_types, counts, strength, replicas)
            for order in list(permutations(range(len(group_types))))[:MOST_ORDERS]:
                shape = tuple(
                    tuple(group_types[part] for part in order for _ in range(row[part]))
                    for row in dealt
                )
                if (
                    max(map(len, shape)) <= MOST_STAGES
                    and min(map(len, shape))
                    and shape not in seen
                ):
                    seen.add(shape)
                    yield shape


def widths_of(devices: int) -> list[int]:
    """Widths of groups: divisors of `devices`, and 2 and 4 where they leave devices unused."""
    even = [n for n in range(1, devices + 1) if devices % n == 0]
    return even + [n for n in (2, 4) if n < devices and devices % n and devices // n > 0]


def deal_groups(
    group_types: Sequence[GroupType],
    counts: Sequence[int],
    strength: Sequence[float],
    replicas: int,
) -> list[list[int]]:
    """Number of groups of every type in each replica."""
    dealt = [[0] * len(group_types) for _ in range(replicas)]
    power = [0.0] * replicas
    by_strength = sorted(
        range(len(group_types)), key=lambda k: -group_types[k].width * strength[group_types[k].part]
    )
    for k in by_strength:
        per_replica, remainder = divmod(counts[k], replicas)
        weakest = sorted(range(replicas), key=lambda n: (power[n], n))
        for position, n in enumerate(weakest):
            count = per_replica + (position < remainder)
            dealt[n][k] = count
            power[n] += count * group_types[k].width * strength[group_types[k].part]
    return dealt
