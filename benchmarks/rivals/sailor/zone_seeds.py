"""First shapes for fleets in several zones: whole stages in a zone, so that gradients stay inside.

zone a   stage 0, all replicas        a message a micro-batch goes from zone to zone,
zone b   stage 1, all replicas        no gradient does
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from plait.benchmarks.rivals.sailor.allocation import Shape, Stock
from plait.benchmarks.rivals.sailor.profile import Measured
from plait.benchmarks.rivals.sailor.quick_prices import QuickPrices

STAGES_PER_ZONE = 3
CLOSE = 1e-3  # relative, of the slowest stage


class ZoneSeed(NamedTuple):
    """Seconds of the step without messages, and a shape."""

    seconds: float
    shape: Shape


def zone_seeds(prices: QuickPrices, stocks: Sequence[Stock]) -> Iterator[ZoneSeed]:
    """Shapes with one kind of GPU and one degree whose stages fill zones."""
    for number, stock in enumerate(stocks):
        others = [set(other.zones) for other in stocks[:number]]
        if len(stock.zones) == 1 or set(stock.zones) in others:
            continue
        for key in sorted(k for k in prices.usable if k.gpu in stock.kinds):
            for stages in range(1, STAGES_PER_ZONE * len(stock.zones) + 1):
                seed = _seed(prices, stock, key, stages)
                if seed is not None:
                    yield seed._replace(shape=seed.shape._replace(stock=number))


def _seed(prices: QuickPrices, stock: Stock, key: Measured, stages: int) -> ZoneSeed | None:
    """The shape with so many stages; None where its zones cannot hold them."""
    kind, share = stock.kinds.index(key.gpu), -(-stages // len(stock.zones))
    replicas = min(row[kind] for row in stock.gpus) // (key.degree * share)
    bounds = balanced(prices, key, stages)
    if not replicas or bounds is None:
        return None
    degrees = tuple(key.degree if k == kind else 0 for k in range(len(stock.kinds)))
    busy = [prices.busy_rows[key][first][last] for first, last in pairwise(bounds)]
    rounds = prices.micro_batches(key.micro_batch, replicas) - 1
    shape = Shape(key.micro_batch, bounds, (degrees,) * stages, replicas, 0)
    return ZoneSeed(rounds * max(busy) + sum(busy), shape)


def balanced(prices: QuickPrices, key: Measured, stages: int) -> tuple[int, ...] | None:
    """Bounds whose slowest stage is the fastest there can be; None where no bounds fit."""
    if stages > prices.profile.layers:
        return None
    best, low, high = None, 0.0, prices.busy_rows[key][0][prices.profile.layers]
    while high - low > CLOSE * high:
        limit = (low + high) / 2 if best else high
        bounds = _within(prices, key, stages, limit)
        if bounds is None:
            if best is None:
                return None
            low = limit
        else:
            best = bounds
            high = max(prices.busy_rows[key][a][b] for a, b in pairwise(bounds))
    return best


def _within(
    prices: QuickPrices, key: Measured, stages: int, limit: float
) -> tuple[int, ...] | None:
    """Bounds of stages that fit and take no longer, filled from the first one on."""
    bounds, layers = [0], prices.profile.layers
    for after in reversed(range(stages)):
        first, busy = bounds[-1], prices.busy_rows[key][bounds[-1]]
        last = layers - after
        while last > first and not (
            busy[last] <= limit * (1 + 1e-12) and prices.fits(key, first, last, after)
        ):
            last -= 1
        if last == first:
            return None
        bounds.append(last)
    return tuple(bounds) if bounds[-1] == layers else None
