"""Min-marginals of edges with many consumers: exact for few layouts, a lower bound for many.

The cost of an edge is minimised over all assignments of layouts to consumers, which share copies.
With few consumers these are enumerated as partitions of the consumers (see `ascent`), with few
layouts as sets of layouts; with many of both a lower bound is used.
"""

from __future__ import annotations

from math import inf

import numpy as np

from .moves import Floats

MOST_LAYOUTS = 12  # that are tried in every combination


def by_layouts(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """Min-marginal per layout of one endpoint (0 the producer, else a consumer), exact."""
    columns = seconds.shape[1]
    sets = np.arange(1, 1 << columns)
    inside = (sets[:, None] >> np.arange(columns) & 1).astype(bool)
    finite = np.where(np.isinf(seconds), 0.0, seconds)
    copies = finite @ inside.T
    copies[(np.isinf(seconds).astype(np.int64) @ inside.T) > 0] = inf
    for consumer, price in enumerate(prices[1:], 1):
        if consumer != number:
            copies = copies + np.where(inside, price, inf).min(axis=1)
    if number == 0:
        return copies.min(axis=1)
    best = (copies + prices[0][:, None]).min(axis=0)
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
