"""Min-marginals of edges with many consumers: exact for few layouts, a lower bound for many.

The cost of an edge is minimised over all assignments of layouts to consumers, which share copies.
With few consumers these are enumerated as partitions of the consumers (see `ascent`), with few
layouts as sets of layouts; with many of both a lower bound is used.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from .moves import Floats

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_LAYOUTS = 12  # that are tried in every combination


def by_layouts(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """Min-marginal per layout of one endpoint (0 the producer, else a consumer), exact."""
    columns = seconds.shape[1]
    sets: Ints = np.arange(1, 1 << columns, dtype=np.int64)
    bits: Ints = np.arange(columns, dtype=np.int64)
    inside: Bools = np.asarray(sets[:, None] >> bits & 1, np.bool_)
    finite: Floats = np.where(np.isinf(seconds), 0.0, seconds)
    copies: Floats = finite @ inside.T
    copies[(np.isinf(seconds).astype(np.int64) @ inside.T) > 0] = inf
    for consumer, price in enumerate(prices[1:], 1):
        if consumer != number:
            cheapest: Floats = np.where(inside, price, inf).min(axis=1)
            copies = copies + cheapest
    if number == 0:
        return copies.min(axis=1)
    best: Floats = (copies + prices[0][:, None]).min(axis=0)
    return np.where(inside, best[:, None], inf).min(axis=0)


def by_shares(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """Lower bound: every consumer pays an equal share of a copy, as if all used the same layout."""
    shares = seconds / (len(prices) - 1)
    total = np.zeros(len(seconds))
    for consumer, price in enumerate(prices[1:], 1):
        if consumer != number:
            total = total + (shares + price).min(axis=1)
    if number == 0:
        return total
    return (shares + (total + prices[0])[:, None]).min(axis=0)
