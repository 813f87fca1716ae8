"""Seconds of one collective: alpha-beta by link level, flat ring or level by level, the cheaper.

Bandwidth is per device and direction, so groups that run side by side do not share it: every device
is taken to have its own share of its node's uplink.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from ...ir.devices.cluster import Cluster, Link


class Leg(NamedTuple):
    """Step of a collective: `amount` bytes over groups of `size` ranks on one link level."""

    kind: str
    amount: float
    size: int
    link: Link

    @property
    def rounds(self) -> int:
        return self.passes * (self.size - 1)

    @property
    def passes(self) -> int:
        """Passes round the ring."""
        return 2 if self.kind == "all_reduce" else 1

    @property
    def moved_bytes(self) -> float:
        """Bytes that one rank sends."""
        if self.kind in ("broadcast", "send"):
            return self.amount
        return self.copies * self.amount * (self.size - 1) / self.size

    @property
    def copies(self) -> int:
        """Number of times a rank sends the shards of the others."""
        twice = self.kind == "reduce_scatter" and self.link.whole_reductions
        return 2 if twice else self.passes

    @property
    def seconds(self) -> float:
        curve = self.link.curve(self.kind, self.size) if self.link.curves else None
        if curve is not None:
            return curve.at(self.amount)
        moved = self.moved_bytes / self.link.bandwidth_bytes_per_second
        return self.rounds * self.link.latency_seconds + moved


def collective_seconds(kind: str, amount: float, size: int, stride: int, cluster: Cluster) -> float:
    """Seconds for a group of `size` ranks that lie `stride` ranks apart.

    `amount` in bytes: the full tensor for all_reduce, all_gather, reduce_scatter and broadcast, one
    rank's tensor for all_to_all. `cut` and `share` move nothing.
    """
    return sum(leg.seconds for leg in collective_legs(kind, amount, size, stride, cluster))


def collective_legs(
    kind: str, amount: float, size: int, stride: int, cluster: Cluster
) -> tuple[Leg, ...]:
    """Consecutive legs of a collective: one flat ring, or level by level, the cheaper."""
    if size == 1 or kind in ("cut", "share"):
        return ()
    flat = (Leg(kind, amount, size, cluster.slowest_link(stride, size)),)
    inner = _node_group_size(size, stride, cluster)
    if kind not in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        return flat
    if not 1 < inner < size:
        return flat
    nested = _hierarchical_legs(kind, amount, inner, size // inner, stride, cluster)
    return min(flat, nested, key=lambda legs: sum(leg.seconds for leg in legs))


def send_seconds(amount: float, link: Link) -> float:
    """Seconds to send bytes over a link, one way."""
    return send_leg(amount, link).seconds if amount else 0.0


def send_leg(amount: float, link: Link) -> Leg:
    return Leg("send", amount, 2, link)


def send_link(first: int, stride: int, cluster: Cluster) -> Link:
    """The slowest link from ranks `first`..`first + stride - 1` to the next `stride` ranks."""
    return cluster.link_between(first, first + 2 * stride - 1)


def _hierarchical_legs(
    kind: str, amount: float, inner: int, outer: int, stride: int, cluster: Cluster
) -> tuple[Leg, ...]:
    """Legs inside the nodes, across them with the reduced amount, and back."""
    near, far = cluster.slowest_link(stride, inner), cluster.slowest_link(stride * inner, outer)
    if kind == "all_reduce":
        return (
            Leg("reduce_scatter", amount, inner, near),
            Leg("all_reduce", amount / inner, outer, far),
            Leg("all_gather", amount, inner, near),
        )
    if kind == "all_to_all":  # a part stays inside the node, the others cross unchanged
        return (Leg(kind, amount / outer, inner, near), Leg(kind, amount, outer, far))
    return (Leg(kind, amount, inner, near), Leg(kind, amount / inner, outer, far))


def _node_group_size(size: int, stride: int, cluster: Cluster) -> int:
    """Group members guaranteed to share a unit of the innermost level."""
    unit = cluster.levels[-1].size
    return gcd(size, unit // stride) if unit % stride == 0 else 1
