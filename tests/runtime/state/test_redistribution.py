"""Moving tensors between programs: who sends what, against elements counted one by one."""

from itertools import permutations, product
from math import prod

import pytest
import torch

from plait.api import plan
from plait.codegen.table import plan_table
from plait.ir.lowering.redistribute import (
    STEPPED,
    VALUES,
    ShardLevels,
    movements,
    parameters_of,
    redistribution_bytes,
)
from plait.tests import ranks
from plait.tests.api.plans.test_bucket_plans import local_elements
from plait.tests.paths import ROOT
from plait.tests.sampling import some

STRATEGIES = ("dp=4", "zero3=4", "pp=2,zero1=2", "dp=2,tp=2", "zero3=2@1/2,tp=2", "zero2=2,dp=2")


@pytest.fixture(scope="module")
def tables(llama):
    return [plan_table(plan(llama, cluster="4xh100", pin=s), llama) for s in STRATEGIES]


def numbers(table, name, box):
    """The numbers of a box's elements in its whole tensor."""
    shape = parameters_of(table)[name].type.shape
    strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    places = ([n for first, last in ranges for n in range(first, last)] for ranges in box)
    return [sum(map(int.__mul__, place, strides)) + 1 for place in product(*places)]


@pytest.mark.parametrize("pair", some(permutations(range(len(STRATEGIES)), 2), 40))
@pytest.mark.parametrize("levels", [VALUES, STEPPED])
def test_every_rank_gets_what_it_lacks_once(tables, pair, levels):
    old, new = (tables[number] for number in pair)
    kind = levels == STEPPED
    there = [local_elements(old, rank)[kind] for rank in range(4)]
    needed = [local_elements(new, rank)[kind] for rank in range(4)]
    arrived = [{n: torch.zeros_like(t, dtype=torch.int) for n, t in row.items()} for row in needed]
    moves = movements(old, new, parameters_of(old), ShardLevels(levels, levels))
    sent = [0] * 4
    for move in moves:
        elements = numbers(old, move.name, move.box)
        assert there[move.sender][move.name][elements].all(), move
        arrived[move.receiver][move.name][elements] += 1
        if move.sender != move.receiver:
            sent[move.sender] += len(elements)
    for rank in range(4):
        for name, wanted in needed[rank].items():
            assert torch.equal(arrived[rank][name], wanted.int()), (rank, name)
    least = redistribution_bytes(old, new) if levels == VALUES else redistribution_bytes(new, old)
    assert 4 * sum(sent) == sum(least.gradients if kind else least.parameters)
    if set(map(str, there)) == {str(there[0])}:  # anyone can send anything
        assert max(sent) <= sum(sent) / 4 * 1.5


@pytest.mark.ranks
@pytest.mark.parametrize("pairs", [1, pytest.param(3, marks=pytest.mark.long)])
def test_batches_of_two_lengths_train_under_two_plans(tmp_path, pairs):
    worker = str(ROOT / "tests" / "runtime" / "state" / "redistribution_worker.py")
    outputs = ranks.launch(4, [worker, str(tmp_path), str(pairs)], timeout_seconds=240)
    assert [text.split()[-2:] for text in outputs] == [["done", str(rank)] for rank in range(4)]
