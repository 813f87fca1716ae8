"""Schedules of device groups: fair shares, no deadlock, few micro-batches in flight."""

import random
from itertools import pairwise

import pytest

from plait.ir.plan.groups.device_group import deal
from plait.ir.plan.groups.schedule import Tile, group_in_flight, group_rows, neighbours
from plait.ir.plan.schedules.table import one_f_one_b, verify_no_deadlock


def random_tiling(random_: random.Random) -> list[Tile]:
    """Stages of one to four groups each, or pipelines of their own stages."""
    count, calls = random_.randint(4, 12), 12
    if random_.random() < 0.5:
        bounds = [0, *sorted(random_.sample(range(1, calls), random_.randint(0, 3))), calls]
        return [
            Tile(span, row) for span in pairwise(bounds) for row in deal(shares(random_, count))
        ]
    tiles = []
    for row in deal(shares(random_, count)):
        bounds = [0, *sorted(random_.sample(range(1, calls), random_.randint(0, 3))), calls]
        tiles += [Tile(span, row) for span in pairwise(bounds)]
    return tiles


def shares(random_: random.Random, count: int) -> list[int]:
    bounds = sorted(random_.sample(range(1, count), random_.randint(0, 3)))
    return [b - a for a, b in zip([0, *bounds], [*bounds, count], strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_no_tiling_deadlocks(seed):
    tiles = random_tiling(random.Random(seed))
    rows, near = group_rows(tiles), neighbours(tiles)

    def needs(step, group):
        kind, _, number = step
        source = (near[group].before if kind == "F" else near[group].after).get(number)
        if source is not None:
            yield source, step
        if kind == "B":
            yield group, ("F", 0, number)

    verify_no_deadlock(rows, needs)
    for tile, row in zip(tiles, rows, strict=True):
        assert sorted(row) == sorted((k, 0, m) for k in "FB" for m in tile.micro_batches)


def test_a_pipeline_alone_is_1f1b():
    tiles = [Tile((s, s + 1), tuple(range(6))) for s in range(3)]
    table = one_f_one_b(3, 6)
    assert [[(k, m) for k, _, m in row] for row in group_rows(tiles)] == [list(r) for r in table]
    assert [group_in_flight(row) for row in group_rows(tiles)] == [3, 2, 1]


@pytest.mark.parametrize("counts", [[4, 2], [1, 1, 1], [7], [5, 0, 1], [13, 5, 5, 2]])
def test_shares_are_dealt_evenly(counts):
    rows = deal(counts)
    assert [len(row) for row in rows] == counts
    assert sorted(m for row in rows for m in row) == list(range(sum(counts)))
    for count, row in zip(counts, rows, strict=True):
        for number in range(sum(counts)):
            done = sum(m <= number for m in row)
            assert abs(done - (number + 1) * count / sum(counts)) < 1.5
