"""Replicas placed on a fleet: which GPUs serve which replica of every stage.

A shape says how a replica may be served: by stage and kind of GPU, the tensor degree. Lanes, the
j-th replicas of all stages, stay in one zone where they can, so that only gradients cross zones;
else zones fill up stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plait.benchmarks.rivals.sailor.plan import TensorGroup
from plait.benchmarks.rivals.sailor.quick_prices import CompactPlan, Run

Degrees = tuple[int, ...]  # of one stage, by kind of GPU; 0 where a kind does not serve it
Counts = list[list[int]]  # replicas by stage and kind


class Shape(NamedTuple):
    """How stages are formed, and how many replicas are wanted at most from which stock."""

    micro_batch: int
    bounds: tuple[int, ...]
    degrees: tuple[Degrees, ...]
    replicas: int
    stock: int


class Stock(NamedTuple):
    """GPUs by zone and kind; zones in the order in which they are used."""

    zones: tuple[str, ...]
    kinds: tuple[str, ...]
    gpus: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> tuple[int, ...]:
        """GPUs by kind."""
        return tuple(map(sum, zip(*self.gpus, strict=True)))


class Serving(NamedTuple):
    """By kind of GPU: the stages that it may serve, those first where it saves the most of later
    kinds.
    """

    degrees: tuple[Degrees, ...]
    stages: tuple[tuple[int, ...], ...]

    def counts(self, replicas: int, gpus: Sequence[int]) -> Counts | None:
        """Replicas by stage and kind; None where the GPUs do not suffice."""
        degrees, allocated = self.degrees, [[0] * len(gpus) for _ in self.degrees]
        missing = [replicas] * len(degrees)
        for kind, free in enumerate(gpus):
            for i in self.stages[kind]:
                degree, used = degrees[i][kind], missing[i]
                if used * degree > free:
                    used = free // degree
                allocated[i][kind] = used
                missing[i] -= used
                free -= used * degree
        return None if any(missing) else allocated

    def most(self, gpus: Sequence[int], limit: int) -> int:
        """The most replicas, up to a limit, that the GPUs can serve."""
        lane = sum(min(t for t in row if t) for row in self.degrees)
        low, high = 0, min(limit, sum(gpus) // lane)
        while low < high:
            middle = (low + high + 1) // 2
            if self.counts(middle, gpus) is None:
                high = middle - 1
            else:
                low = middle
        return low


def serving(degrees: tuple[Degrees, ...]) -> Serving:
    """Who serves which stage, where every stage has at least one degree."""

    def order(kind: int) -> tuple[int, ...]:
        usable = [i for i, row in enumerate(degrees) if row[kind]]
        return tuple(sorted(usable, key=lambda i: -_saved(degrees[i], kind)))

    return Serving(degrees, tuple(order(kind) for kind in range(len(degrees[0]))))


def _saved(degrees: Degrees, kind: int) -> float:
    """GPUs of later kinds that one GPU of this kind saves; more than any where none can serve."""
    later = [t for t in degrees[kind + 1 :] if t]
    return min(later) / degrees[kind] if later else 1e9


def allocations(shape: Shape, stock: Stock) -> Iterator[CompactPlan]:
    """Plans of a shape with as many replicas as it wants or the stock can serve."""
    served = serving(shape.degrees)
    if len(stock.zones) == 1:
        most = served.most(stock.gpus[0], shape.replicas)
        if most:
            yield _by_lane(shape, stock, served, [most], most)
        return
    most = served.most(stock.total, shape.replicas)
    lanes = [served.most(gpus, most) for gpus in stock.gpus]
    inside = min(most, sum(lanes))
    if inside:
        yield _by_lane(shape, stock, served, lanes, inside)
    if most:
        yield from _by_stage(shape, stock, served, most)


def _by_lane(
    shape: Shape, stock: Stock, served: Serving, lanes: Sequence[int], replicas: int
) -> CompactPlan:
    """Every lane within a zone."""
    stages: list[list[Run]] = [[] for _ in shape.degrees]
    for zone, gpus, most in zip(stock.zones, stock.gpus, lanes, strict=True):
        here = min(most, replicas)
        replicas -= here
        found = served.counts(here, gpus) if here else None
        for i, row in enumerate(found or ()):
            stages[i] += _runs(zone, stock.kinds, shape.degrees[i], row)
    return CompactPlan(shape.micro_batch, shape.bounds, tuple(map(tuple, stages)))


def _runs(zone: str, kinds: Sequence[str], degrees: Degrees, row: Sequence[int]) -> list[Run]:
    return [
        Run(count, TensorGroup(zone, kind, degree))
        for kind, degree, count in zip(kinds, degrees, row, strict=True)
        if count
    ]


def _by_stage(shape: Shape, stock: Stock, served: Serving, replicas: int) -> Iterator[CompactPlan]:
    """Zones filled one after the other, stage by stage; nothing where groups do not pack."""
    found = served.counts(replicas, stock.total)
    free = [list(gpus) for gpus in stock.gpus]
    stages = list[tuple[Run, ...]]()
    for degrees, row in zip(shape.degrees, found or (), strict=True):
        runs = list[Run]()
        for kind, count in enumerate(row):
            for zone, gpus in zip(stock.zones, free, strict=True):
                used = min(count, gpus[kind] // degrees[kind]) if count else 0
                gpus[kind] -= used * degrees[kind]
                count -= used
                if used:
                    runs.append(Run(used, TensorGroup(zone, stock.kinds[kind], degrees[kind])))
            if count:
                return
        stages.append(tuple(runs))
    yield CompactPlan(shape.micro_batch, shape.bounds, tuple(stages))
