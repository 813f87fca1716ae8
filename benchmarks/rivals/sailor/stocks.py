"""Parts of a fleet that a plan may use: sets of zones, in an order in which links are fast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise, permutations

from plait.benchmarks.rivals.sailor.allocation import Stock
from plait.benchmarks.rivals.sailor.plan import TensorGroup
from plait.benchmarks.rivals.sailor.question import Scenario
from plait.benchmarks.rivals.sailor.quick_prices import QuickPrices

SHARES = (1 / 100, 1 / 20, 1 / 4)  # of all gradients in a message: bandwidth depends on the size
MOST_ORDERS = 720  # of zones that are compared


def stocks_of(prices: QuickPrices, scenario: Scenario) -> list[Stock]:
    """Stocks by falling number of zones: those with the slowest links leave first.

    Kinds are ordered from the fastest GPU. A set of zones is there in its best orders.
    """
    kinds = _kinds(prices, scenario)
    zones = [z for z, gpus in scenario.fleet.items() if any(gpus.get(k, 0) for k in kinds)]
    stocks = list[Stock]()
    while kinds and zones:
        for order in _orders(prices, zones, kinds[-1]):
            gpus = tuple(tuple(scenario.fleet[z].get(k, 0) for k in kinds) for z in order)
            stocks.append(Stock(tuple(order), kinds, gpus))
        zones = _without_farthest(prices, zones, kinds[-1])
    return list(dict.fromkeys(stocks))


def _kinds(prices: QuickPrices, scenario: Scenario) -> tuple[str, ...]:
    speed = {
        gpu: min(
            (
                prices.busy[key][0, -1] * key.degree / key.micro_batch
                for key in prices.usable
                if key.gpu == gpu
            ),
            default=None,
        )
        for zone in scenario.fleet.values()
        for gpu, count in zone.items()
        if count
    }
    measured = {gpu: seconds for gpu, seconds in speed.items() if seconds is not None}
    return tuple(sorted(measured, key=lambda gpu: measured[gpu]))


def _orders(prices: QuickPrices, zones: Sequence[str], kind: str) -> list[tuple[str, ...]]:
    """For every message size the order whose slowest neighbours are the fastest."""
    orders = list[tuple[str, ...]]()
    for share in SHARES:
        size = share * prices.weight_rows[0][-1]

        def slowest(order: tuple[str, ...], size: float = size) -> float:
            links = (_send(prices, kind, a, b, size) for a, b in pairwise(order))
            return max(links, default=0.0)

        orders.append(min(islice(permutations(zones), MOST_ORDERS), key=slowest))
    return list(dict.fromkeys(orders))


def _send(prices: QuickPrices, kind: str, zone: str, other: str, size_bytes: float) -> float:
    return prices.send(TensorGroup(zone, kind, 1), TensorGroup(other, kind, 1), size_bytes)


def _without_farthest(prices: QuickPrices, zones: Sequence[str], kind: str) -> list[str]:
    size = prices.weight_rows[0][-1] * SHARES[-1]

    def distance(zone: str) -> float:
        return sum(_send(prices, kind, zone, other, size) for other in zones if other != zone)

    farthest = max(zones, key=distance)
    return [zone for zone in zones if zone != farthest]
