"""Prices of compact plans with one pipeline, by table look-ups, for the search.

A stage is a list of runs of equal replicas in order, so that plans with hundreds of replicas are
priced in time proportional to the kinds of tensor groups that they use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil, inf, sqrt
from typing import NamedTuple

import numpy as np

from plait.benchmarks.rivals.sailor.judge import DENSE_DEGREE, ONE_RING_BYTES, STATES
from plait.benchmarks.rivals.sailor.plan import SailorPipeline, SailorPlan, TensorGroup
from plait.benchmarks.rivals.sailor.profile import (
    FLOAT_BYTES,
    Cloud,
    End,
    Measured,
    Reals,
    SailorProfile,
)


class Run(NamedTuple):
    """Equal replicas that follow each other in a stage."""

    replicas: int
    group: TensorGroup


Stages = Sequence[Sequence[Run]]


class Price(NamedTuple):
    """Seconds and dollars of a step, and how long its stages are busy in the root mean square."""

    seconds: float
    dollars: float
    stage_seconds: float = 0.0


class CompactPlan(NamedTuple):
    """One pipeline: micro-batch, first layer of every stage and the number of layers, replicas."""

    micro_batch: int
    bounds: tuple[int, ...]
    stages: tuple[tuple[Run, ...], ...]

    def plan(self) -> SailorPlan:
        """The plan with every replica listed."""
        layers = tuple(last - first for first, last in pairwise(self.bounds))
        replicas = tuple(
            tuple(run.group for run in stage for _ in range(run.replicas)) for stage in self.stages
        )
        return SailorPlan(self.micro_batch, (SailorPipeline(layers, replicas),))


class QuickPrices:
    """Tables of one model in one cloud: sums over spans of layers, and seconds of messages."""

    def __init__(self, profile: SailorProfile, cloud: Cloud) -> None:
        self.profile, self.cloud = profile, cloud
        machine = cloud.gpus_per_machine
        self.usable = {  # that tensor groups of one machine can have
            key
            for key in profile.seconds
            if machine[key.gpu] % key.degree == 0 and key.degree in profile.sizes
        }
        self.busy = {k: _spans(t.busy) for k, t in profile.seconds.items()}
        self.busy_rows = {k: table.tolist() for k, table in self.busy.items()}
        self.updates = {k: t.update.tolist() for k, t in profile.seconds.items()}
        self.weights = _spans(profile.weight_bytes)
        self.weight_rows: list[list[float]] = self.weights.tolist()
        self.parameters = {t: _spans(s.parameters) for t, s in profile.sizes.items()}
        self.activations = {t: _spans(s.activation_floats) for t, s in profile.sizes.items()}
        self.parameter_rows = {t: table.tolist() for t, table in self.parameters.items()}
        self.activation_rows = {t: table.tolist() for t, table in self.activations.items()}
        self.sent: list[float] = profile.sent_bytes.tolist()
        self.sent_seconds: dict[tuple[TensorGroup, TensorGroup, float], float] = {}
        self.rings: dict[tuple[TensorGroup, TensorGroup, int, float], float] = {}

    def fits(self, measured: Measured, first: int, last: int, after: int) -> bool:
        """Whether layers fit into a GPU with `after` later stages."""
        t = measured.degree
        size = STATES * self.parameter_rows[t][first][last]
        saved = self.activation_rows[t][first][last]
        size += FLOAT_BYTES * measured.micro_batch * (after + 1) * saved + other_bytes(t)
        return size <= self.cloud.memory_bytes[measured.gpu]

    def fitting(self, measured: Measured, after: int) -> np.ndarray:
        """The same for all spans: a table by first layer and the one after the last."""
        t = measured.degree
        size = STATES * self.parameters[t] + other_bytes(t)
        saved = FLOAT_BYTES * measured.micro_batch * (after + 1)
        return size + saved * self.activations[t] <= self.cloud.memory_bytes[measured.gpu]

    def send(self, one: TensorGroup, other: TensorGroup, size_bytes: float) -> float:
        """Seconds of a message from one tensor group to another."""
        key = (one, other, size_bytes)
        seconds = self.sent_seconds.get(key)
        if seconds is None:
            link = self.cloud.links.get((self._end(one), self._end(other)))
            seconds = self.sent_seconds[key] = inf if link is None else link.seconds(size_bytes)
        return seconds

    def _end(self, group: TensorGroup) -> End:
        gpus = min(group.degree, self.cloud.gpus_per_machine[group.gpu])
        return End(group.zone, group.gpu, gpus)

    def ring(self, one: TensorGroup, other: TensorGroup, ranks: int, size_bytes: float) -> float:
        """Seconds of a reduction over `ranks` replicas, between two neighbours."""
        if ranks <= 1:
            return 0.0
        key = (one, other, ranks, size_bytes)
        seconds = self.rings.get(key)
        if seconds is None:
            link = self.cloud.links.get((End(one.zone, one.gpu, 1), End(other.zone, other.gpu, 1)))
            seconds = inf if link is None else _ring_seconds(link.seconds, ranks, size_bytes)
            self.rings[key] = seconds
        return seconds

    def micro_batches(self, micro_batch: int, replicas: int) -> int:
        return ceil(self.profile.samples / (micro_batch * replicas))

    def price(self, plan: CompactPlan) -> Price:
        """Seconds and dollars of a plan that fits."""
        b, bounds, stages = plan
        spans = list(pairwise(bounds))
        replicas = sum(run.replicas for run in stages[0])
        micro_batches = self.micro_batches(b, replicas)
        busy = list[float]()
        update = reduction = rate = traffic = 0.0
        for (first, last), runs in zip(spans, stages, strict=True):
            measured = [Measured(r.group.gpu, b, r.group.degree) for r in runs]
            busy.append(max(self.busy_rows[key][first][last] for key in measured))
            update = max(update, *(self.updates[key][first] for key in measured))
            weights = self.weight_rows[first][last]
            size = weights / min(DENSE_DEGREE, *(r.group.degree for r in runs))
            for one, other in _neighbours(runs):
                reduction = max(reduction, self.ring(one, other, replicas, size))
            for run in runs:
                price = self.cloud.dollars_per_second[run.group.gpu]
                rate += run.replicas * run.group.degree * price
            around = self._around(runs)
            traffic += around * 2 * (replicas - 1) * weights / replicas
        network, between = self._network(b, spans, stages)
        stage_seconds = list(map(sum, zip(busy, network, strict=True)))
        mean = micro_batches * sqrt(sum(s * s for s in stage_seconds) / len(stages))
        seconds = (
            (micro_batches - 1) * max(stage_seconds) + sum(network) + sum(busy) + update + reduction
        )
        return Price(seconds, seconds * rate + traffic + micro_batches * between, mean)

    def _around(self, runs: Sequence[Run]) -> float:
        """Dollars of a byte sent once around the replicas of a stage."""
        price = self.cloud.dollars_per_byte
        total = sum((r.replicas - 1) * price[r.group.zone, r.group.zone] for r in runs)
        ring = [*runs, runs[0]]
        return total + sum(price[a.group.zone, b.group.zone] for a, b in pairwise(ring))

    def _network(
        self, b: int, spans: Sequence[tuple[int, int]], stages: Stages
    ) -> tuple[list[float], float]:
        """Seconds for which every stage sends, and dollars of a micro-batch between stages."""
        if len(stages) == 1:
            return [0.0], 0.0
        forward, backward, dollars = list[float](), list[float](), 0.0
        for i, (one, other) in enumerate(pairwise(stages)):
            sent, returned = b * self.sent[spans[i][1] - 1], b * self.sent[spans[i + 1][0]]
            there = back = 0.0
            for count, left, right in _lanes(one, other):
                there = max(there, self.send(left, right, sent))
                back = max(back, self.send(right, left, returned))
                price = self.cloud.dollars_per_byte
                both = price[left.zone, right.zone] + price[right.zone, left.zone]
                dollars += count * both * sent
            forward.append(there)
            backward.append(back)
        first = forward[0] if len(stages) <= 3 else 2 * forward[0]
        middle = map(sum, zip(forward[1:], backward[:-1], strict=True))
        return [first, *middle, 2 * backward[-1]], dollars


def other_bytes(degree: int) -> float:
    """Bytes of a GPU for everything but states and activations."""
    return 2e9 if degree == 1 else 3e9


def _spans(amounts: Reals) -> Reals:
    """Sums over every span of layers, by first layer and the one after the last."""
    ends = np.concatenate([[0.0], np.cumsum(amounts)])
    return ends[None, :] - ends[:-1, None]


def _ring_seconds(seconds: Callable[[float], float], ranks: int, size_bytes: float) -> float:
    whole, rest = divmod(size_bytes, ONE_RING_BYTES)
    total = whole * seconds(ONE_RING_BYTES / ranks) if whole else 0.0
    return 2 * (ranks - 1) * (total + (seconds(rest / ranks) if rest else 0.0))


def _neighbours(runs: Sequence[Run]) -> Iterator[tuple[TensorGroup, TensorGroup]]:
    for run in runs:
        if run.replicas > 1:
            yield run.group, run.group
    for one, other in pairwise(runs):
        yield one.group, other.group


def _lanes(
    one: Sequence[Run], other: Sequence[Run]
) -> Iterator[tuple[int, TensorGroup, TensorGroup]]:
    """Runs of equal pairs of replicas of two stages, replica by replica."""
    i = j = 0
    left, right = one[0].replicas, other[0].replicas
    while True:
        count = min(left, right)
        yield count, one[i].group, other[j].group
        left, right = left - count, right - count
        if left == 0:
            i += 1
            if i == len(one):
                return
            left = one[i].replicas
        if right == 0:
            j += 1
            right = other[j].replicas
