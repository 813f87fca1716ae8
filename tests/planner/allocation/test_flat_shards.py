"""Flat buffers against every order and every shard, before the judge, and on published shapes."""

from itertools import permutations
from random import Random

import pytest

from plait.benchmarks.shapes import DEEPSEEK_V3_LAYER, LLAMA_3_70B_LAYER
from plait.planner.allocation.flat_shards import flatten, solve
from plait.planner.allocation.flat_shards.judge import check
from plait.planner.allocation.flat_shards.kinds import TensorKinds
from plait.planner.allocation.flat_shards.problem import FlatLayout, FlatTensor
from plait.planner.allocation.flat_shards.solve import SIZES, possible_sizes, some_orders


def drawn(random: Random, most: int) -> list[FlatTensor]:
    blocks = random.sample([1, 2, 3, 4, 5, 6, 7, 8, 12], 3)
    return [
        FlatTensor(f"t{i}", random.randint(1, 30), random.choice(blocks))
        for i in range(random.randint(1, most))
    ]


def sound(tensors: list[FlatTensor], layout: FlatLayout) -> bool:
    try:
        check(tensors, layout)
    except ValueError:
        return False
    return True


def least_shard(tensors: list[FlatTensor], ranks: int) -> int:
    """The least shard: every order, every tensor at every place until one is sound."""
    shard = -(-sum(t.elements for t in tensors) // ranks)
    while not any(fits(order, shard, ranks) for order in set(permutations(tensors))):
        shard += 1
    return shard


def fits(order: tuple[FlatTensor, ...], shard: int, ranks: int) -> bool:
    at = 0
    for tensor in order:
        while at + tensor.elements <= shard * ranks:
            bounds = range(shard, shard * ranks, shard)
            inside = [c - at for c in bounds if at < c < at + tensor.elements]
            if not any(d % tensor.block for d in inside):
                break
            at += 1
        at += tensor.elements
    return at <= shard * ranks


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_few_tensors_get_the_least_shard(start):
    for seed in range(start, start + 50):
        random = Random(seed)
        tensors, ranks = drawn(random, 5), random.randint(1, 5)
        made = flatten(tensors, ranks)
        check(tensors, made)
        assert made.shard_elements == made.bound_elements == least_shard(tensors, ranks)


def test_seven_tensors_get_the_least_shard():
    for seed in range(4):
        tensors = drawn(Random(seed), 7)
        made = flatten(tensors, 3)
        check(tensors, made)
        assert made.shard_elements == made.bound_elements == least_shard(tensors, 3)


def test_many_tensors_are_sound_and_never_below_the_bound():
    for seed in range(40):
        random = Random(seed)
        tensors, ranks = drawn(random, 60), random.choice([2, 3, 8, 13])
        made = flatten(tensors, ranks)
        check(tensors, made)
        assert -(-sum(t.elements for t in tensors) // ranks) <= made.bound_elements
        assert made.bound_elements <= made.shard_elements


def test_no_possible_shard_is_left_out():
    """Greedy fillings only ever fit shards that the bound calls possible."""
    for seed in range(60):
        random = Random(seed)
        kinds, ranks = TensorKinds.of(drawn(random, 6)), random.randint(1, 5)
        named = possible_sizes(kinds, ranks)
        known = next(named)
        for shard in range(1, 60):
            while known < shard:
                known = next(named)
            if some_orders(kinds, shard, ranks) is not None:
                assert shard == known


@pytest.mark.parametrize("shapes", [DEEPSEEK_V3_LAYER, LLAMA_3_70B_LAYER], ids=["moe", "dense"])
@pytest.mark.parametrize("rows", [0, 1])
def test_published_shapes_need_little_padding(shapes, rows, monkeypatch):
    fills: list[int] = []

    def counted(kinds, shard, ranks):
        fills.append(shard)
        return some_orders(kinds, shard, ranks)

    monkeypatch.setattr(solve, "some_orders", counted)
    tensors = [FlatTensor.of(name, shape, rows, 128) for name, shape in shapes]
    elements = sum(t.elements for t in tensors)
    for ranks in (8, 16, 32, 64, 128, 256, 512, 1024):
        fills.clear()
        made = flatten(tensors, ranks)
        assert len(fills) <= SIZES + 8
        check(tensors, made)
        assert made.padding(elements) < 0.03


@pytest.mark.parametrize("offsets", [(0, 2), (0, 8), (0, 4)])
def test_the_judge_refuses(offsets):
    tensors = [FlatTensor("a", 4, 4), FlatTensor("b", 3, 3)]
    with pytest.raises(ValueError, match=r"a|b"):
        check(tensors, FlatLayout(2, 5, 4, offsets))


def test_nothing_to_lay_out():
    with pytest.raises(ValueError, match="needs"):
        flatten([], 2)
