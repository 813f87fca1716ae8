"""First shapes for the search: stages by a relaxation that prices GPUs.

For every micro-batch size, limit of a stage's seconds, limit of its gradients and prices of the
kinds of GPU, the layers are split so that a lane costs least. The fleet's worth over that cost
bounds the number of lanes (Lagrangian duality), and with it the step is estimated.

    limit of seconds ┐                  ┌ fleet's worth / cost of a lane = replicas
    limit of bytes   ┼─ cheapest split ─┤
    prices           ┘                  └ (micro-batches - 1 + stages) x limit of seconds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from plait.benchmarks.rivals.sailor.allocation import Degrees, Shape, Stock
from plait.benchmarks.rivals.sailor.judge import DENSE_DEGREE
from plait.benchmarks.rivals.sailor.plan import TensorGroup
from plait.benchmarks.rivals.sailor.profile import Measured, Reals
from plait.benchmarks.rivals.sailor.question import Scenario, Score, steps_down
from plait.benchmarks.rivals.sailor.quick_prices import QuickPrices
from plait.planner.solvers.chain_partition import one_stage, with_one_more

TIME_LIMITS = 24
BYTE_LIMITS = (1.001, 0.501, 0.26, 0.13)  # of all gradients
PRICE_RATIOS = (1e-3, 0.25, 0.5, 1.0, 2.0, 4.0, 1e3)  # of one kind of GPU against the others
POSITIONS = 16  # where a stage may end; moves of single layers come later
HOPELESS = 1.5  # times the best estimate: longer pipelines are not tried after two such
REPLICA_COUNTS = 12  # tried where dollars count
CELLS = 6  # limits that are followed for a number of stages
EVEN = 1e-4  # of a GPU, for a stage at its limit: of equal costs the even split is best
LONGEST = 3.0  # times the floor: slower steps are of no interest


class Cell(NamedTuple):
    """An estimate, and what it is of: stages, stock, the numbers of the limits, replicas."""

    estimate: Score
    stages: int
    stock: int
    seconds_limit: int
    bytes_limit: int
    replicas: int


class Estimates(NamedTuple):
    """Seconds and dollars of steps, by limits."""

    seconds: Reals
    dollars: Reals


class SeedSearch:
    """Relaxed splits of one scenario."""

    def __init__(
        self, prices: QuickPrices, scenario: Scenario, stocks: Sequence[Stock], floor_seconds: float
    ) -> None:
        self.prices, self.scenario, self.stocks = prices, scenario, stocks
        stock = self.stock = max(stocks, key=lambda s: sum(s.total))
        self.profile, self.floor_seconds = prices.profile, floor_seconds
        self.gpu_prices = np.array(list(_gpu_prices(len(stock.kinds))))
        if scenario.limits_dollars:
            dollars = [prices.cloud.dollars_per_second[kind] for kind in stock.kinds]
            self.gpu_prices = np.vstack([self.gpu_prices, dollars])
        self.gpu_prices = self.gpu_prices.astype(np.float32)
        self.byte_limits = np.array(BYTE_LIMITS) * self.profile.weight_bytes.sum()
        self.worths = [self.gpu_prices @ np.array(s.total, float) for s in self.stocks]
        self.rings = [self._ring_seconds(s) for s in self.stocks]
        layers = self.profile.layers
        inner = np.linspace(1, layers - 1, min(POSITIONS, layers) - 1).round().astype(int)
        self.positions = np.unique([0, *inner, layers])

    def _ring_seconds(self, stock: Stock) -> Reals:
        """Seconds per byte of gradients around replicas in these zones, by limit of bytes."""
        groups = [TensorGroup(zone, stock.kinds[-1], 1) for zone in stock.zones]
        pairs = [(groups[0], groups[0]), *pairwise(groups)]
        return np.array(
            [
                max(self.prices.ring(a, b, 8, float(size)) / (14 / 8 * size) for a, b in pairs)
                for size in self.byte_limits
            ]
        )

    def shapes(self) -> Iterator[Shape]:
        """Shapes of all micro-batch sizes and numbers of stages, best estimate first."""
        sizes = sorted({key.micro_batch for key in self.profile.seconds})
        splits = [MicroBatchSeeds(self, b) for b in sizes]
        ranked = sorted((cell, n) for n, split in enumerate(splits) for cell in split.cells())
        for cell, number in ranked:
            yield from splits[number].shapes(cell)


class MicroBatchSeeds:
    """Relaxed splits for one micro-batch size."""

    def __init__(self, search: SeedSearch, micro_batch: int) -> None:
        self.search, self.micro_batch = search, micro_batch
        self.prices, self.layers = search.prices, search.profile.layers
        self.options = [
            sorted(
                k for k in search.prices.usable if k.gpu == kind and k.micro_batch == micro_batch
            )
            for kind in search.stock.kinds
        ]
        self.degrees = list[Reals]()  # least by stages after: kind, seconds, bytes, span
        positions = search.positions
        self.spans = np.ix_(positions[:-1], positions[1:])

    @property
    def time_limits(self) -> Reals:
        """Limits of a stage's seconds that may lead to a step of interest."""
        whole = [self.prices.busy[key][0, -1] for keys in self.options for key in keys]
        gpus = sum(self.search.stock.total)
        micro_batches = max(1, self.search.profile.samples // (self.micro_batch * gpus))
        longest = LONGEST * self.search.floor_seconds / micro_batches
        if self.search.scenario.limits_dollars:
            longest = max(whole)
        low = min(whole) / min(self.layers, gpus, POSITIONS)
        return np.geomspace(low, max(2 * low, min(1.1 * max(whole), longest)), TIME_LIMITS)

    def cells(self) -> Iterator[Cell]:
        """The best estimates of every number of stages."""
        if not any(self.options):
            return
        self.limits = self.time_limits
        self.splits = one_stage(self._cost(0))
        best, hopeless = np.inf, 0
        for stages in range(1, len(self.search.positions)):
            if stages > 1:
                self.splits = with_one_more(self.splits, self._cost(stages - 1))
            found = list(self._of_stages(stages))
            yield from found
            least = min((cell.estimate.value for cell in found), default=np.inf)
            best = min(best, least)
            hopeless = hopeless + 1 if best < np.inf and least > HOPELESS * best else 0
            if hopeless > 1:
                return

    def _cost(self, after: int) -> Reals:
        """Cost of a lane's stage: seconds limit, bytes limit, prices, first and last position."""
        degrees = np.stack([self._least(keys, after) for keys in self.options])
        self.degrees.append(degrees)
        first, *others = (
            degrees[kind][:, :, None] * row[:, None, None]
            for kind, row in enumerate(self.search.gpu_prices.T)
        )
        for other in others:
            np.minimum(first, other, out=first)
        return first

    def _least(self, keys: Sequence[Measured], after: int) -> Reals:
        """Least degree of a kind by seconds limit, bytes limit and span; inf for none."""
        weights = self.prices.weights[self.spans]
        shape = (TIME_LIMITS, len(BYTE_LIMITS), *weights.shape)
        least = np.full(shape, np.inf, np.float32)
        for key in reversed(keys):  # the least degree last
            share_of_limit = self._stage_seconds(key, after) / self.limits[:, None, None]
            quick = share_of_limit <= 1
            share = weights / min(DENSE_DEGREE, key.degree)
            small = share <= self.search.byte_limits[:, None, None]
            cost = (key.degree + EVEN * np.square(share_of_limit))[:, None]
            np.copyto(least, cost, where=quick[:, None] & small[None])
        return least

    def _stage_seconds(self, key: Measured, after: int) -> Reals:
        """Seconds of a stage and its messages, were all others like it; inf where too large."""
        group = TensorGroup(self.search.stock.zones[0], key.gpu, key.degree)
        positions = self.search.positions
        sent = [
            self.prices.send(group, group, self.micro_batch * size) for size in self.prices.sent
        ]
        forward = np.array([sent[last - 1] for last in positions[1:-1]] + [0.0])[None, :]
        backward = np.array([0.0] + [sent[first] for first in positions[1:-1]])[:, None]
        if after == 0:
            network = 2 * backward + 0 * forward
        else:
            twice = np.zeros((len(positions) - 1, 1))
            twice[0] = after >= 3
            network = forward * (1 + twice) + backward
        seconds = self.prices.busy[key][self.spans] + network
        fits = self.prices.fitting(key, after)[self.spans]
        return np.where(fits & np.tri(len(positions) - 1, dtype=bool).T, seconds, np.inf)

    def _of_stages(self, stages: int) -> Iterator[Cell]:
        """The best estimates with so many stages, for every stock."""
        cost = self.splits.totals(stages)
        for stock, worth in enumerate(self.search.worths):
            replicas = np.floor((worth / cost).min(axis=-1) * (1 + EVEN))
            found = list[Cell]()
            for lanes in self._replica_counts(replicas):
                found += self._best_cells(lanes, cost, stages, stock)
            yield from sorted(found)[:CELLS]

    def _best_cells(self, lanes: Reals, cost: Reals, stages: int, stock: int) -> Iterator[Cell]:
        """The best cells for numbers of replicas by limits."""
        price = self._estimate(lanes, cost, stages, stock)
        violation, value = _scores(self.search.scenario, price)
        order = np.where(violation > 0, 1e6 * (1 + violation), 0.0) + value
        for number in np.argpartition(order, CELLS, axis=None)[:CELLS]:
            row, column = divmod(int(number), len(BYTE_LIMITS))
            score = Score(float(violation[row, column]), float(value[row, column]))
            if score.value < np.inf:
                yield Cell(score, stages, stock, row, column, int(lanes[row, column]))

    def _replica_counts(self, replicas: Reals) -> list[Reals]:
        """Numbers of replicas by limits: as many as there can be, and fewer where dollars count."""
        if not self.search.scenario.limits_dollars:
            return [replicas]
        if replicas.max() < 1:
            return []
        steps = steps_down(self.search.profile.samples, self.micro_batch, int(replicas.max()))
        every = max(1, len(steps) // REPLICA_COUNTS)
        return [np.minimum(replicas, step) for step in steps[::every]]

    def _estimate(self, replicas: Reals, cost: Reals, stages: int, stock: int) -> Estimates:
        usable, lanes = replicas >= 1, np.maximum(replicas, 1)
        micro_batches = np.ceil(self.search.profile.samples / (self.micro_batch * lanes))
        seconds = (micro_batches - 1 + stages) * self.limits[:, None]
        per_byte = self.search.rings[stock] * self.search.byte_limits
        seconds = seconds + 2 * (lanes - 1) / lanes * per_byte
        seconds = np.where(usable, seconds, np.inf)
        return Estimates(seconds, seconds * lanes * cost[..., -1])

    def shapes(self, cell: Cell) -> Iterator[Shape]:
        """Different splits of a cell, by prices."""
        limited = self.search.scenario.limits_dollars
        lanes = cell.replicas if limited else self.search.profile.samples // self.micro_batch
        seen = set[tuple[int, ...]]()
        for row in range(len(self.search.gpu_prices)):
            where = (cell.seconds_limit, cell.bytes_limit, row)
            ends = self.splits.bounds(cell.stages, where)
            if ends not in seen:
                seen.add(ends)
                bounds = tuple(int(self.search.positions[end]) for end in ends)
                degrees = tuple(self._degrees(ends, where))
                yield Shape(self.micro_batch, bounds, degrees, lanes, cell.stock)

    def _degrees(self, ends: tuple[int, ...], where: tuple[int, int, int]) -> Iterator[Degrees]:
        for after, (first, last) in zip(
            reversed(range(len(ends) - 1)), pairwise(ends), strict=True
        ):
            least = self.degrees[after][:, where[0], where[1], first, last - 1]
            yield tuple(int(t) if t < np.inf else 0 for t in least)


def _scores(scenario: Scenario, price: Estimates) -> tuple[Reals, Reals]:
    violation = np.zeros_like(price.seconds)
    if scenario.max_usd_per_step is not None:
        violation = np.maximum(violation, price.dollars / scenario.max_usd_per_step - 1)
    if scenario.min_steps_per_s is not None:
        violation = np.maximum(violation, price.seconds * scenario.min_steps_per_s - 1)
    return violation, price.seconds if scenario.objective == "throughput" else price.dollars


def _gpu_prices(kinds: int) -> Iterator[list[float]]:
    """Prices of the kinds of GPU: of one kind against all others."""
    if kinds == 1:
        yield [1.0]
        return
    for kind in range(kinds if kinds > 2 else 1):
        for ratio in PRICE_RATIOS:
            yield [ratio if k == kind else 1.0 for k in range(kinds)]
