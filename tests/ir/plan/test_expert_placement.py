"""Experts on ranks: however unlike the loads, one replica a rank gives all ranks the mean."""

import random

import pytest

from plait.ir.plan.expert_placement import EMPTY, at_home, balanced, level, slot_shares
from plait.ir.plan.routing import Routing


def drawn_loads(draw, experts):
    kind = draw.randrange(3)
    if kind == 0:
        return [draw.randrange(100) for _ in range(experts)]
    if kind == 1:
        return [draw.paretovariate(0.6) for _ in range(experts)]
    loads = [(i + 1.0) ** -1.5 for i in range(experts)]
    draw.shuffle(loads)
    return loads


def check(placement, experts):
    """Every expert has one home, no rank an expert twice, and all rows go somewhere."""
    assert sorted(placement.order) == list(range(experts))
    total = [0.0] * experts
    for rank, row in enumerate(placement.shares):
        there = [e for e in placement.experts_of(rank) if e != EMPTY]
        assert len(set(there)) == len(there)
        for expert, share in zip(placement.experts_of(rank), row, strict=True):
            if expert != EMPTY:
                total[expert] += share
    assert total == pytest.approx([1.0] * experts)
    assert all(shares.slots and shares.ends[-1] == 1 for shares in slot_shares(placement))


def test_loads_are_level_after_any_step():
    draw = random.Random(0)
    for _ in range(60):
        ranks, count = draw.choice((2, 3, 4, 8)), draw.choice((1, 2, 3, 8))
        placement = at_home(ranks * count, ranks, draw.choice((1, 2)))
        for _ in range(3):  # each from the placement before
            loads = drawn_loads(draw, ranks * count)
            before, placement = placement, balanced(placement, loads)
            check(placement, ranks * count)
            assert placement.ratio(loads) <= 1.2
            assert placement is before or before.ratio(loads) > 1.2
            check(level(before, loads), ranks * count)
            assert level(before, loads).ratio(loads) == pytest.approx(1)


def test_homes_move_only_where_replicas_are_not_enough():
    start = at_home(8, 2, 1)
    assert balanced(start, (4, 0, 0, 0, 0, 0, 0, 0)).homes == start.homes  # a replica: half of it
    spread = balanced(start, (1, 1, 1, 1, 0, 0, 0, 0))
    assert spread.homes != start.homes
    back = balanced(spread, (1,) * 8)
    assert back is spread or not back.has_replicas


def test_plans_price_the_fullest_rank_of_placed_experts():
    skewed = Routing(exponent=1.2)
    assert skewed.fullest(64, 8) > 3
    assert Routing(exponent=1.2, spare_slots=1).fullest(64, 8) <= 1.2
    assert Routing(spare_slots=1).fullest(64, 8) == 1
