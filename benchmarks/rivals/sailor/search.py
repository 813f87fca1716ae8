"""Search for the plan of a scenario: relaxed splits, then moves of one boundary, degree or stage.

It stops after a number of priced plans that grows with the fleet, not after seconds, so that it
gives the same answer on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from random import Random
from typing import NamedTuple

import msgspec

from plait.benchmarks.rivals.sailor.allocation import Degrees, Shape, allocations
from plait.benchmarks.rivals.sailor.floor import floor_seconds
from plait.benchmarks.rivals.sailor.profile import Measured
from plait.benchmarks.rivals.sailor.question import WORST, Scenario, Score, steps_down
from plait.benchmarks.rivals.sailor.quick_prices import CompactPlan, Price, QuickPrices
from plait.benchmarks.rivals.sailor.seeds import SeedSearch
from plait.benchmarks.rivals.sailor.stocks import stocks_of
from plait.benchmarks.rivals.sailor.zone_seeds import zone_seeds

TRIED_SHARE = 2  # of the plans that are priced: one of so many is a seed
CLIMBS = 6  # seeds from which to climb first
UNEVEN = 2e-3  # of the objective: what the mean stage counts beside the slowest
KICK = 3  # moves at random from a local optimum
LEAST_PRICED, MOST_PRICED = 160, 12_000  # plans; more for more GPUs


class SailorAnswer(msgspec.Struct, frozen=True):
    """The best plan found, what the search's own tables say it costs, and a floor of the step."""

    plan: CompactPlan
    price: Price
    floor_seconds: float


def search(prices: QuickPrices, scenario: Scenario, seed: int = 0) -> SailorAnswer | None:
    """The best plan found; None where none fits and keeps the limits."""
    floor = floor_seconds(prices.profile, scenario.fleet)
    plan = ShapeSearch(prices, scenario, floor, seed).best()
    return None if plan is None else SailorAnswer(plan, prices.price(plan), floor)


class Priced(NamedTuple):
    """A plan of a shape, its score, and the score that guides moves."""

    score: Score
    guide: Score
    plan: CompactPlan | None


NOTHING = Priced(WORST, WORST, None)


class ShapeSearch:
    """Prices shapes of one scenario and improves them move by move."""

    def __init__(
        self, prices: QuickPrices, scenario: Scenario, floor_seconds: float, seed: int
    ) -> None:
        self.prices, self.scenario, self.floor_seconds = prices, scenario, floor_seconds
        self.stocks, self.random = stocks_of(prices, scenario), Random(seed)
        self.priced, self.best_priced = dict[Shape, Priced](), NOTHING
        self.micro_batches = sorted({key.micro_batch for key in prices.usable})

    @property
    def most_priced(self) -> int:
        stock = self.stocks[0]
        if len(stock.kinds) == 1:
            return LEAST_PRICED
        if self.scenario.objective != "throughput":
            return 3 * LEAST_PRICED
        return min(MOST_PRICED, LEAST_PRICED + sum(stock.total) ** 2 // 12)

    def best(self) -> CompactPlan | None:
        if not self.stocks:
            return None
        seeds = SeedSearch(self.prices, self.scenario, self.stocks, self.floor_seconds)
        tried = islice(seeds.shapes(), self.most_priced // TRIED_SHARE)
        shapes = {shape for seed in tried if (shape := self.trimmed(seed)) is not None}
        in_zones = sorted(zone_seeds(self.prices, self.stocks))[: self.most_priced // TRIED_SHARE]
        shapes |= {seed.shape for seed in in_zones}
        ranked = sorted(sorted(shapes), key=self.score)
        optima = [self.climb(shape) for shape in _diverse(ranked)]
        best = min(optima, key=self.score, default=None)
        if best is None:
            return None
        self.kicked(best, optima)
        return self.best_priced.plan if self.best_priced.score.violation <= 0 else None

    def kicked(self, best: Shape, optima: Sequence[Shape]) -> None:
        """Climbs again from local optima after moves at random, while plans may be priced."""
        ranked, stalls = sorted(set(optima), key=self.score)[:CLIMBS], 0
        while len(self.priced) < self.most_priced and stalls < self.most_priced:
            priced = len(self.priced)
            start = best if self.random.random() < 0.5 else self.random.choice(ranked)
            for _ in range(self.random.randint(1, KICK)):
                start = next(self.neighbours(start), start)
            best = min(best, self.climb(start), key=self.score)
            stalls += len(self.priced) == priced

    def score(self, shape: Shape) -> Score:
        """The score that guides the search: even stages break ties, as they lead to faster ones."""
        return self._priced(shape).guide

    def _priced(self, shape: Shape) -> Priced:
        if shape not in self.priced:
            found = [self._scored(plan) for plan in allocations(shape, self.stocks[shape.stock])]
            self.priced[shape] = min(found, key=lambda p: p.score, default=NOTHING)
            self.best_priced = min(self.best_priced, self.priced[shape], key=lambda p: p.score)
        return self.priced[shape]

    def _scored(self, plan: CompactPlan) -> Priced:
        price = self.prices.price(plan)
        score = self.scenario.score(price)
        even = 1 + UNEVEN * price.stage_seconds / price.seconds
        return Priced(score, Score(score.violation, score.value * even), plan)

    def climb(self, shape: Shape) -> Shape:
        """Moves to better neighbours until there is none."""
        score, moved = self.score(shape), True
        while moved:
            moved = False
            for other in self.neighbours(shape):
                if self.score(other) < score:
                    shape, score, moved = other, self.score(other), True
                    break
        return shape

    def trimmed(self, shape: Shape) -> Shape | None:
        """The shape without degrees that are not measured or do not fit; None where none is left."""
        stages, degrees = len(shape.degrees), list[Degrees]()
        for i, row in enumerate(shape.degrees):
            after, span = stages - 1 - i, shape.bounds[i : i + 2]
            fitting = tuple(
                t if t and self._usable(shape.micro_batch, kind, t, span, after) else 0
                for kind, t in enumerate(row)
            )
            if not any(fitting):
                return None
            degrees.append(fitting)
        return shape._replace(degrees=tuple(degrees))

    def _usable(self, b: int, kind: int, degree: int, span: tuple[int, ...], after: int) -> bool:
        key = Measured(self.stocks[0].kinds[kind], b, degree)
        return key in self.prices.usable and self.prices.fits(key, span[0], span[1], after)

    def neighbours(self, shape: Shape) -> Iterator[Shape]:
        """Shapes one move away that fit, at random."""
        moves = list(self._moves(shape))
        self.random.shuffle(moves)
        for other in moves:
            trimmed = self.trimmed(other)
            if trimmed is not None:
                yield trimmed

    def _moves(self, shape: Shape) -> Iterator[Shape]:
        yield from _boundary_moves(shape)
        yield from _stage_moves(shape)
        yield from self._degree_moves(shape)
        for stock in range(len(self.stocks)):
            if stock != shape.stock:
                yield shape._replace(stock=stock)
        for replicas in self._other_counts(shape):
            yield shape._replace(replicas=replicas)
        for b in self.micro_batches:
            if b != shape.micro_batch:
                yield shape._replace(micro_batch=b, replicas=self.prices.profile.samples // b)

    def _degree_moves(self, shape: Shape) -> Iterator[Shape]:
        """One degree changed, or all of a kind doubled or halved."""
        for kind in range(len(self.stocks[0].kinds)):
            for up, down in ((2, 1), (1, 2)):
                degrees = tuple(
                    (*row[:kind], row[kind] * up // down, *row[kind + 1 :]) for row in shape.degrees
                )
                yield shape._replace(degrees=degrees)
        for i, row in enumerate(shape.degrees):
            for kind, degree in enumerate(row):
                for other in (0, 1, 2, 4, 8):
                    if other != degree:
                        changed = (*row[:kind], other, *row[kind + 1 :])
                        degrees = (*shape.degrees[:i], changed, *shape.degrees[i + 1 :])
                        yield shape._replace(degrees=degrees)

    def _other_counts(self, shape: Shape) -> Iterator[int]:
        """As many replicas as there can be, or one micro-batch more or fewer for each."""
        samples, b = self.prices.profile.samples, shape.micro_batch
        plan = self._priced(shape).plan
        now = shape.replicas if plan is None else sum(run.replicas for run in plan.stages[0])
        yield samples // b
        yield from steps_down(samples, b, now)[:2]
        micro_batches = -(-samples // (b * now))
        if micro_batches > 1:
            yield -(-samples // (b * (micro_batches - 1)))


def _boundary_moves(shape: Shape) -> Iterator[Shape]:
    bounds = shape.bounds
    for i in range(1, len(bounds) - 1):
        for step in (-1, 1):
            moved = (*bounds[:i], bounds[i] + step, *bounds[i + 1 :])
            if all(first < last for first, last in pairwise(moved)):
                yield shape._replace(bounds=moved)


def _stage_moves(shape: Shape) -> Iterator[Shape]:
    """A stage halved, or joined with the next, or exchanged with it."""
    bounds, degrees = shape.bounds, shape.degrees
    for i, (first, last) in enumerate(pairwise(bounds)):
        if last - first > 1:
            halves = (*bounds[: i + 1], (first + last) // 2, *bounds[i + 1 :])
            yield shape._replace(
                bounds=halves, degrees=(*degrees[:i], degrees[i], degrees[i], *degrees[i + 1 :])
            )
        if i + 1 < len(degrees):
            joined = (*bounds[: i + 1], *bounds[i + 2 :])
            for row in {degrees[i], degrees[i + 1]}:
                yield shape._replace(bounds=joined, degrees=(*degrees[:i], row, *degrees[i + 2 :]))
            middle = first + bounds[i + 2] - last
            if degrees[i] != degrees[i + 1]:
                yield shape._replace(
                    bounds=(*bounds[: i + 1], middle, *bounds[i + 2 :]),
                    degrees=(*degrees[:i], degrees[i + 1], degrees[i], *degrees[i + 2 :]),
                )


def _diverse(shapes: Sequence[Shape]) -> list[Shape]:
    """The best shapes, one of each micro-batch size and number of stages."""
    first = {(shape.micro_batch, len(shape.degrees)): shape for shape in reversed(shapes)}
    chosen = set(first.values())
    return [shape for shape in shapes if shape in chosen][:CLIMBS]
