"""Flows with many users cost what every assignment of layouts, tried one by one, says."""

from itertools import product

import numpy as np
import pytest

from plait.planner.sharding.network.many_consumers import by_layouts, by_shares


def tried(seconds, prices, number):
    """The least per layout of one end over all layouts of the others."""
    rows, columns = seconds.shape
    least = np.full(columns if number else rows, np.inf)
    for row, *wanted in product(range(rows), *[range(columns)] * (len(prices) - 1)):
        cost = sum(seconds[row, c] for c in set(wanted))
        ends = (row, *wanted)
        cost += sum(prices[n][e] for n, e in enumerate(ends) if n != number)
        least[ends[number]] = min(least[ends[number]], cost)
    return least


@pytest.mark.parametrize("seed", range(12))
def test_many_users(seed):
    rng = np.random.default_rng(seed)
    rows, columns, users = 3, 3, 5
    seconds = rng.integers(0, 9, (rows, columns)).astype(float)
    seconds[rng.random((rows, columns)) < 0.15] = np.inf
    prices = [rng.integers(-3, 4, n).astype(float) for n in (rows, *[columns] * users)]
    for number in range(users + 1):
        expected = tried(seconds, prices, number)
        np.testing.assert_allclose(by_layouts(seconds, prices, number), expected)
        assert (by_shares(seconds, prices, number) <= expected + 1e-9).all()
