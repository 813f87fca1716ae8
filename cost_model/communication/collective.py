"""Seconds of one collective: alpha-beta by link level, flat ring or level by level, the cheaper.

Bandwidth is per device and direction, so groups that run side by side do not share it: every device
is taken to have its own share of its node's uplink.
"""

from __future__ import annotations

from math import gcd
from typing import Generic, NamedTuple

from ...ir.devices.cluster import Cluster, Link
from ..quantity import Number, curve_seconds


class CommGroup(NamedTuple):
    """A group of `size` ranks that lie `stride` ranks apart."""

    size: int
    stride: int


class LinkRates(NamedTuple, Generic[Number]):
    """What a message costs on a link: seconds per round, bytes per second."""

    latency: Number
    bandwidth: Number


class Leg(NamedTuple):
    """Step of a collective: `amount` bytes over groups of `size` ranks on one link level."""

    kind: str
    amount: float
    size: int
    link: Link

    @property
    def passes(self) -> int:
        """Passes round the ring."""
        return 2 if self.kind == "all_reduce" else 1

    @property
    def copies(self) -> int:
        """Number of times a rank sends the shards of the others."""
        twice = self.kind == "reduce_scatter" and self.link.whole_reductions
        return 2 if twice else self.passes

    @property
    def seconds(self) -> float:
        link = self.link
        rates = LinkRates(link.latency_seconds, link.bandwidth_bytes_per_second)
        return leg_seconds(self, self.amount, self.size, rates)


def leg_seconds(leg: Leg, amount: Number, size: Number, rates: LinkRates[Number]) -> Number:
    """Seconds of a leg for `amount` bytes over `size` ranks: the measured curve, or alpha-beta."""
    curve = leg.link.curve(leg.kind, leg.size) if leg.link.curves else None
    if curve is not None:
        return curve_seconds(curve, amount)
    moved = amount
    if leg.kind not in ("broadcast", "send"):
        moved = leg.copies * amount * (size - 1) / size
    return leg.passes * (size - 1) * rates.latency + moved / rates.bandwidth


def collective_seconds(kind: str, amount: float, group: CommGroup, cluster: Cluster) -> float:
    """Seconds of a collective over a group of ranks.

    `amount` in bytes: the full tensor for all_reduce, all_gather, reduce_scatter and broadcast, one
    rank's tensor for all_to_all. `cut` and `share` move nothing.
    """
    return sum(leg.seconds for leg in collective_legs(kind, amount, group, cluster))


def collective_legs(
    kind: str, amount: float, group: CommGroup, cluster: Cluster
) -> tuple[Leg, ...]:
    """Consecutive legs of a collective: one flat ring, or level by level, the cheaper."""
    size, stride = group
    if size == 1 or kind in ("cut", "share"):
        return ()
    flat = (Leg(kind, amount, size, cluster.slowest_link(stride, size)),)
    inner = _node_group_size(group, cluster)
    if kind not in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        return flat
    if not 1 < inner < size:
        return flat
    nested = _hierarchical_legs(kind, amount, group, inner, cluster)
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
    kind: str, amount: float, group: CommGroup, inner: int, cluster: Cluster
) -> tuple[Leg, ...]:
    """Legs inside the nodes, across them with the reduced amount, and back."""
    outer, stride = group.size // inner, group.stride
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


def _node_group_size(group: CommGroup, cluster: Cluster) -> int:
    """Group members guaranteed to share a unit of the innermost level."""
    unit = cluster.levels[-1].size
    return gcd(group.size, unit // group.stride) if unit % group.stride == 0 else 1
