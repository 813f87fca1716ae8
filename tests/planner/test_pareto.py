"""Pareto fronts against their definition."""

import random

import numpy as np
import pytest

from plait.planner.solvers.pareto import no_worse, pareto, undominated


@pytest.mark.parametrize("seed", range(20))
def test_a_front_has_what_nothing_else_beats(seed):
    dice = random.Random(seed)
    points = [tuple(dice.randrange(5) for _ in range(3)) for _ in range(40)]
    front = pareto(points, lambda point: point)
    assert front == sorted(
        {p for p in points if not any(no_worse(q, p) and q != p for q in points)}
    )


def test_the_first_of_equal_items_stays():
    assert pareto(["a1", "b1", "c0"], lambda item: (int(item[1]), -int(item[1]))) == ["c0", "a1"]


def test_near_ties_may_leave_too():
    items = [(1.0, 10.0), (2.0, 9.9), (3.0, 5.0)]
    front = pareto(items, lambda item: item, lambda a, b: a[0] <= b[0] and 0.97 * a[1] <= b[1])
    assert front == [(1.0, 10.0), (3.0, 5.0)]


@pytest.mark.parametrize("seed", range(20))
def test_arrays_give_the_same_front(seed):
    points = np.random.default_rng(seed).integers(0, 4, (30, 2))
    dominates = (points[None, :, :] <= points[:, None, :]).all(axis=2)
    stays = undominated(dominates)
    assert set(map(tuple, points[stays].tolist())) == set(
        pareto(map(tuple, points.tolist()), tuple)
    )
    assert stays.sum() == len(set(map(tuple, points[stays].tolist())))
