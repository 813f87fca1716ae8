"""Lower bounds of a plan's step by its shape, before layers are split.

A replica passes no more micro-batches a second than its devices compute under the fastest strategies.
Where it goes over to another part, some boundary between calls lies there: it passes no more than the
groups before compute of the calls before, those after of the calls after, and the link sends. Two
replicas and more add up every trained weight's gradient over a link between them, there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from math import inf

from ...cost_model.communication.collective import send_seconds
from ...ir.cached import cached_method
from ...ir.devices.cluster import Link
from .group_prices import GroupPrices, GroupType
from .shapes import PlanShape, ReplicaShape


class ShapeBounds:
    """Bounds for one model on one mixed cluster."""

    def __init__(self, group_prices: GroupPrices) -> None:
        self.group_prices, self.model = group_prices, group_prices.model
        self.cluster, self.parts = group_prices.cluster, group_prices.parts
        self.trained_bytes = sum(p.type.bytes for p in self.model.parameters if p.trainable)
        boundaries = group_prices.pricer(GroupType(0, 1)).aggregator.boundaries
        self.boundary_bytes = [sum(full) for full in boundaries.bytes]  # of a global batch

    def seconds(self, shape: PlanShape, samples: int) -> float:
        """Lower bound of the step seconds on micro-batches of `samples`."""
        rates = [self.replica_rate(row, samples) for row in shape]
        micro_batches = self.model.batch / samples
        return min(
            self.seconds_around(shape, rates, first, micro_batches) for first in range(len(shape))
        )

    def seconds_around(
        self, shape: PlanShape, rates: Sequence[float], first: int, micro_batches: float
    ) -> float:
        """The bound where replica `first` adds up all gradients: for replicas whose gradients reach it
        soon alone, then for those of the next, and so on, as the others may get no micro-batch."""
        others = sorted(
            (self.sum_seconds(shape[first], row), rate)
            for n, (row, rate) in enumerate(zip(shape, rates, strict=True))
            if n != first
        )
        least, total = inf, 0.0
        for seconds, rate in [(0.0, rates[first]), *others]:
            total += rate
            least = min(least, micro_batches / total + seconds if total else inf)
        return least

    @cached_method
    def replica_rate(self, row: ReplicaShape, samples: int) -> float:
        """Upper bound of the micro-batches per second of a pipeline."""
        return min([self.compute_rate(row, samples), *self.rates_between_parts(row, samples)])

    def compute_rate(self, groups: Sequence[GroupType], samples: int) -> float:
        """Micro-batches per second that groups compute, were all always busy."""
        calls = (0, len(self.model.calls))
        return sum(1 / self.group_prices.least_seconds(g, samples, calls) for g in groups)

    def rates_between_parts(self, row: ReplicaShape, samples: int) -> Iterator[float]:
        """Upper bounds of the micro-batches per second by the links between parts."""
        for n in range(1, len(row)):
            one, other = row[n - 1], row[n]
            if one.part != other.part:
                link = self.cluster.link_of_parts(one.part, other.part)
                scale = samples / self.model.batch / one.width
                seconds = [send_seconds(full * scale, link) for full in self.boundary_bytes]
                if self.compute_rate(row, samples) * max(seconds) > 1:
                    yield self.rate_between(row, n, samples, seconds)

    def rate_between(
        self, row: ReplicaShape, at: int, samples: int, sent: Sequence[float]
    ) -> float:
        """The most micro-batches per second with any boundary between groups `at - 1` and `at`;
        `sent`: seconds of a micro-batch over every boundary."""
        before, after = [0.0] * len(sent), [0.0] * len(sent)
        for number, group in enumerate(row):
            done = self.seconds_before(group, samples)
            for i, seconds in enumerate(done):
                rates, busy = (before, seconds) if number < at else (after, done[-1] - seconds)
                rates[i] += 1 / busy if busy else inf
        rates = zip(before[1:-1], after[1:-1], sent[1:-1], strict=True)
        return max((min(b, a, 1 / s if s else inf) for b, a, s in rates), default=0.0)

    @cached_method
    def seconds_before(self, group: GroupType, samples: int) -> list[float]:
        """Least seconds of a group for the calls before every boundary."""
        each = [
            self.group_prices.least_seconds(group, samples, (call, call + 1))
            for call in range(len(self.model.calls))
        ]
        return list(accumulate((s if s < inf else 0.0 for s in each), initial=0.0))

    @cached_method
    def sum_seconds(self, first: ReplicaShape, other: ReplicaShape) -> float:
        """Lower bound of the seconds in which a replica adds up its gradients with the first one's:
        some device of it has its share of all trained weights at least."""
        share = self.trained_bytes / sum(group.width for group in other)
        pairs = product({g.part for g in first}, {g.part for g in other})
        return min(2 * send_seconds(share, self.link(*pair)) for pair in pairs)

    def link(self, part: int, other: int) -> Link:
        """The fastest link between devices of two parts, or of one."""
        if part != other:
            return self.cluster.link_of_parts(part, other)
        return max(self.parts[part].levels, key=lambda level: level.bandwidth_bytes_per_second)
