"""Lower bounds of a plan's step by its shape, before layers are split.

The stages of a replica share the calls out: as shares of what each would take for all of them they add
up to the model at least once, whichever calls are whose. A stage computes every micro-batch of its
replica; the first one has passed the stages before it by then, and the last one goes back through them.
Where a replica goes over to another part, some boundary between calls lies there: it passes no more
than the groups before compute of the calls before, those after of the calls after, and the link sends.
Two replicas and more add up every trained weight's gradient over a link between them, there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from heapq import heapify, heapreplace
from itertools import accumulate, product
from math import inf
from typing import NamedTuple

from ...cost_model.communication.collective import send_seconds
from ...ir.cached import cached_method
from ...ir.devices.cluster import Link
from .group_prices import GroupPrices, GroupType
from .shapes import PlanShape, ReplicaShape


class ReplicaBound(NamedTuple):
    """A replica takes `fill_seconds`, and one over `rate` for every micro-batch, at least."""

    fill_seconds: float
    rate: float


Shared = Callable[[int, Sequence[ReplicaBound]], float]
NOT_SPLIT: Mapping[ReplicaShape, float] = {}


def shared_seconds(micro_batches: int, replicas: Sequence[ReplicaBound]) -> float:
    """Least seconds in which replicas pass so many micro-batches, shared out at will."""
    least, rate, filled = inf, 0.0, 0.0
    for replica in sorted(replicas):
        if replica.rate:
            rate += replica.rate
            filled += replica.rate * replica.fill_seconds
            least = min(least, (micro_batches + filled) / rate)
    return least


def dealt_seconds(micro_batches: int, replicas: Sequence[ReplicaBound]) -> float:
    """As `shared_seconds`, in whole micro-batches: each goes to the replica that would end first."""
    ends = [(one.fill_seconds + 1 / one.rate, 1 / one.rate) for one in replicas if one.rate]
    heapify(ends)
    last = inf
    for _ in range(micro_batches if ends else 0):
        last, each = ends[0]
        heapreplace(ends, (last + each, each))
    return last


class ShapeBounds:
    """Bounds for one model on one mixed cluster."""

    def __init__(self, group_prices: GroupPrices) -> None:
        self.group_prices, self.model = group_prices, group_prices.model
        self.cluster, self.parts = group_prices.cluster, group_prices.parts
        self.trained_bytes = sum(p.type.bytes for p in self.model.parameters if p.trainable)
        boundaries = group_prices.pricer(GroupType(0, 1)).aggregator.boundaries
        self.boundary_bytes = [sum(full) for full in boundaries.bytes]  # of a global batch

    def seconds(
        self,
        shape: PlanShape,
        samples: int,
        shared: Shared = shared_seconds,
        slowest: Mapping[ReplicaShape, float] = NOT_SPLIT,
    ) -> float:
        """Lower bound of the step seconds on micro-batches of `samples`; `shared`: by how replicas share
        them, `slowest`: seconds of the slowest stage of replicas whose calls are split."""
        replicas = [self.replica(row, samples, slowest.get(row, 0.0)) for row in shape]
        return min(
            self.seconds_around(shape, replicas, n, partial(shared, self.model.batch // samples))
            for n in range(len(shape))
        )

    def seconds_around(
        self,
        shape: PlanShape,
        replicas: Sequence[ReplicaBound],
        first: int,
        shared: Callable[[Sequence[ReplicaBound]], float],
    ) -> float:
        """The bound where replica `first` adds up all gradients: for replicas whose gradients reach it
        soon alone, then for those of the next, and so on, as the others may get no micro-batch."""
        others = sorted(
            (self.sum_seconds(shape[first], row), replica)
            for n, (row, replica) in enumerate(zip(shape, replicas, strict=True))
            if n != first
        )
        least, working = inf, list[ReplicaBound]()
        for seconds, replica in [(0.0, replicas[first]), *others]:
            working.append(replica)
            least = min(least, shared(working) + seconds)
        return least

    @cached_method
    def replica(self, row: ReplicaShape, samples: int, slowest: float) -> ReplicaBound:
        """The bound of a pipeline of these groups, whose slowest takes so long for a micro-batch."""
        rate = min([self.compute_rate(row, samples), *self.rates_between_parts(row, samples)])
        if not rate:
            return ReplicaBound(inf, 0.0)
        each = max(1 / rate, slowest)
        counts = range(1, self.model.batch // samples + 1)
        fill = min(self.pipeline_seconds(row, samples, n) - n * each for n in counts)
        return ReplicaBound(max(0.0, fill), 1 / each)

    def compute_rate(self, groups: Sequence[GroupType], samples: int) -> float:
        """Micro-batches per second that groups compute, were all always busy."""
        rate = sum(self.alone_rate(group, samples) for group in groups)
        return rate / self.least_shares(frozenset(groups), samples) if rate else 0.0

    def pipeline_seconds(self, row: ReplicaShape, samples: int, micro_batches: int) -> float:
        """Lower bound of the seconds of a pipeline for so many micro-batches: with s seconds a
        micro-batch, a stage is done after `micro_batches` s and the s of all stages before it."""
        rate = 0.0  # shares of the model, by second that is left, of a stage and those after it
        for group in reversed(row):
            more = self.alone_rate(group, samples) - rate
            rate += max(0.0, more) / micro_batches
        return self.least_shares(frozenset(row), samples) / rate

    @cached_method
    def least_shares(self, groups: frozenset[GroupType], samples: int) -> float:
        """What the shares of the stages add up to at least: 1 where each call has the same share of the
        seconds on all groups. Calls that are no stage on any group, as of data alone, count nothing."""
        rates = [self.alone_rate(group, samples) for group in groups]
        each = [self.call_seconds(group, samples) for group in groups]
        shares = (
            min(s * rate if s < inf else inf for s, rate in zip(of_call, rates, strict=True))
            for of_call in zip(*each, strict=True)
        )
        return sum(share for share in shares if share < inf)

    def alone_rate(self, group: GroupType, samples: int) -> float:
        """Micro-batches per second of all calls that a group can compute, by itself."""
        seconds = self.seconds_before(group, samples)[-1]
        return 1 / seconds if seconds else 0.0

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
        """Least seconds of a group for the calls before every boundary that it can compute."""
        each = self.call_seconds(group, samples)
        return list(accumulate((s if s < inf else 0.0 for s in each), initial=0.0))

    @cached_method
    def call_seconds(self, group: GroupType, samples: int) -> list[float]:
        """Least seconds of a group for every call; inf where it has no strategy for it."""
        return [
            self.group_prices.least_seconds(group, samples, (call, call + 1))
            for call in range(len(self.model.calls))
        ]

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
