"""The axes that split the batch: what each device keeps a part of, and what it costs to put together.

    zero3   forward   gather weights of a call │ run it │ free
            backward  gather again │ run │ reduce-scatter gradients
    dp      after the last micro-batch: all-reduce gradients
"""

from __future__ import annotations

from math import prod

from ..ir.cluster import Cluster
from ..ir.strategy import ROLES, Strategy
from .collective import collective_seconds

Axis = tuple[str, int, int]  # role, size, ranks between neighbours
Axes = list[Axis]


class BatchAxes:
    """What the batch axes of a strategy cut, and the seconds to gather and to add up."""

    def __init__(self, strategy: Strategy, cluster: Cluster, gradient_scale: float = 1.0) -> None:
        """`gradient_scale`: bytes of a gradient sent, per byte of its parameter."""
        self.cluster, self.scale = cluster, gradient_scale
        axes = [(r, n, stride(strategy, r)) for r, n in strategy.axes]
        self.sharded = [a for a in axes if ROLES[a[0]].shards]
        self.inside = [a for a in axes if a[:2] in strategy.inside]
        self.replicas = [
            a for a in axes if ROLES[a[0]].batch and a not in self.sharded + self.inside
        ]
        self.shards = frozenset(s for r, _, _ in self.sharded for s in ROLES[r].shards)
        self.known: dict[tuple[str, float, tuple[Axis, ...]], float] = {}
        self.ways = prod(size for _, size, _ in self.sharded)

    def pieces(self, what: str) -> int:
        return self.ways if what in self.shards else 1

    def state_bytes(self, held: int, summed: dict[str, int], over_all: bool) -> int:
        """Bytes of held weights whose optimizer states lie here. `over_all`: weights that are whole
        along an axis inside a replica (`summed` there) have their states cut along it too."""
        if "optimizer" not in self.shards and not over_all:
            return held
        bytes_here = float(held)
        for role, size, _ in self.inside if over_all else ():
            bytes_here -= summed.get(role, 0) * (1 - 1 / size)
        return int(max(bytes_here, 0.0)) // self.ways

    def seconds(self, kind: str, amount: float, axes: Axes) -> float:
        key = kind, amount, tuple(axes)
        if key not in self.known:
            self.known[key] = sum(
                float(collective_seconds(kind, amount, size, stride, self.cluster))
                for _, size, stride in axes
            )
        return self.known[key]

    def gather_seconds(self, amount: int) -> float:
        """Weights of one call, before each of its pieces."""
        return self.seconds("all_gather", amount, self.sharded) if "parameter" in self.shards else 0.0

    def scatter_seconds(self, amount: int) -> float:
        """Gradients of one call, after its backward."""
        if "gradient" not in self.shards:
            return 0.0
        return self.seconds("reduce_scatter", amount * self.scale, self.sharded)

    def reduce_seconds(self, held: int, summed: dict[str, int]) -> float:
        """Once per step: gradients over plain axes and the tensor axes, or scattered to their owners."""
        part = self.scale / self.pieces("optimizer")
        seconds = self.seconds("all_reduce", held * part, self.replicas)
        for axis in self.inside:
            seconds += self.seconds("all_reduce", summed[axis[0]] * part, [axis])
        if "optimizer" in self.shards and "gradient" not in self.shards:
            seconds += self.seconds("reduce_scatter", held * self.scale, self.sharded)
        return seconds

    def return_seconds(self, held: int) -> float:
        """Once per step: updated weights from their owners to all."""
        if "optimizer" in self.shards and "parameter" not in self.shards:
            return self.seconds("all_gather", held, self.sharded)
        return 0.0

    def buffer_bytes(self, biggest: int, in_place: bool) -> int:
        """Gathered weights of one call, its whole gradients, and flat copies for the wire."""
        if "parameter" in self.shards:
            return 3 * biggest
        if in_place:
            return 0
        return 2 * biggest if self.shards else biggest


def stride(strategy: Strategy, role: str) -> int:
    """Distance in ranks between neighbours along a role's axis."""
    ranks = 1
    for name, size in reversed(strategy.axes):
        if name == role:
            return ranks
        ranks *= size
    return ranks
