"""Flows with many users: a few layouts are tried in every combination, many layouts are bounded.

The least that a flow costs goes over all ways in which its users share layouts. With few users these
are partitions of the users; with few layouts, sets of layouts; with many of both, a lower bound.
"""

from __future__ import annotations

from math import inf

import numpy as np

from .moves import Floats

MOST_LAYOUTS = 12  # that are tried in every combination


def by_layouts(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """The least per layout of one end (0 the maker, else a user) over all sets of layouts made."""
    columns = seconds.shape[1]
    sets = np.arange(1, 1 << columns)
    inside = (sets[:, None] >> np.arange(columns) & 1).astype(bool)
    finite = np.where(np.isinf(seconds), 0.0, seconds)
    made = finite @ inside.T
    made[(np.isinf(seconds).astype(np.int64) @ inside.T) > 0] = inf
    for user, price in enumerate(prices[1:], 1):
        if user != number:
            made = made + np.where(inside, price, inf).min(axis=1)
    if number == 0:
        return made.min(axis=1)
    best = (made + prices[0][:, None]).min(axis=0)
    return np.where(inside, best[:, None], inf).min(axis=0)


def by_shares(seconds: Floats, prices: list[Floats], number: int) -> Floats:
    """A lower bound: every user pays its share of a layout, as if all of them wanted that one."""
    shares = seconds / (len(prices) - 1)
    total = np.zeros(len(seconds))
    for user, price in enumerate(prices[1:], 1):
        if user != number:
            total = total + (shares + price).min(axis=1)
    if number == 0:
        return total
    return (shares + (total + prices[0])[:, None]).min(axis=0)
