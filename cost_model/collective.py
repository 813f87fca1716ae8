"""Seconds of one collective: alpha-beta by link level, flat ring or level by level, the cheaper.

Bandwidth is per device and direction, so groups that run side by side do not share it: every device
is taken to have its own share of its node's uplink.
"""

from __future__ import annotations

from math import gcd

from ..ir.cluster import Cluster, Link


def collective_seconds(kind: str, amount: float, size: int, stride: int, cluster: Cluster) -> float:
    """Seconds for a group of `size` ranks that lie `stride` ranks apart.

    `amount` in bytes: the whole tensor for all_reduce, all_gather, reduce_scatter and broadcast, one
    rank's tensor for all_to_all. `cut` and `share` move nothing.
    """
    if size == 1 or kind in ("cut", "share"):
        return 0.0
    flat = _ring(kind, amount, size, cluster.level_for(stride, size))
    inner = _inside(size, stride, cluster)
    if kind not in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        return flat
    if not 1 < inner < size:
        return flat
    outer = size // inner
    return min(flat, _nested(kind, amount, inner, outer, stride, cluster))


def send_seconds(amount: float, first: int, stride: int, cluster: Cluster) -> float:
    """Seconds for `stride` ranks from `first` on to send `amount` bytes each, `stride` ranks on."""
    if not amount:
        return 0.0
    inner = 1
    for link in reversed(cluster.levels):
        inner *= link.size
        if first // inner == (first + 2 * stride - 1) // inner:
            return _ring("send", amount, 2, link)
    return _ring("send", amount, 2, cluster.levels[0])


def _ring(kind: str, amount: float, size: int, link: Link) -> float:
    """One algorithm over one kind of link."""
    part = (size - 1) / size
    rounds, moved = {
        "all_reduce": (2 * (size - 1), 2 * part * amount),
        "all_gather": (size - 1, part * amount),
        "reduce_scatter": (size - 1, part * amount * (2 if link.whole_reductions else 1)),
        "all_to_all": (size - 1, part * amount),
        "broadcast": (size - 1, amount),
        "send": (1, amount),
    }[kind]
    return rounds * link.latency_seconds + moved / link.bandwidth_bytes_per_second


def _nested(
    kind: str, amount: float, inner: int, outer: int, stride: int, cluster: Cluster
) -> float:
    """Inside the nodes first, then across them with the part that is left, then back."""
    near, far = cluster.level_for(stride, inner), cluster.level_for(stride * inner, outer)
    if kind == "all_reduce":
        return (
            _ring("reduce_scatter", amount, inner, near)
            + _ring("all_reduce", amount / inner, outer, far)
            + _ring("all_gather", amount, inner, near)
        )
    if kind == "all_to_all":  # a part stays inside, the others leave as they are
        return _ring(kind, amount / outer, inner, near) + _ring(kind, amount, outer, far)
    return _ring(kind, amount, inner, near) + _ring(kind, amount / inner, outer, far)


def _inside(size: int, stride: int, cluster: Cluster) -> int:
    """Members of every group that surely share a unit of the innermost level."""
    unit = cluster.levels[-1].size
    return gcd(size, unit // stride) if unit % stride == 0 else 1
