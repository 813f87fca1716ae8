"""Weights that the first ready ranks average: against ranks of torch's SGD in one process."""

import threading
import time
from functools import partial

import pytest
import torch

from plait.ir.compression.registry import algorithm
from plait.ir.errors import UsageError
from plait.runtime.compression.optimizers.partial_reduce import PartialReduce
from plait.runtime.compression.ready_ranks import SeededRanks, first_ready
from plait.runtime.compression.threads import run_ranks

RANKS, SIZE, STEPS, LR, MU = 4, 23, 9, 0.05, 0.9


class SharedStore:
    """A dictionary with the calls of torch's stores."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def add(self, key, amount):
        with self.lock:
            self.values[key] = self.values.get(key, 0) + amount
            return self.values[key]

    def compare_set(self, key, expected, value):
        with self.lock:
            if self.values.get(key, b"") == expected.encode():
                self.values[key] = value.encode()
            return self.values[key]


def gradient(x, step, rank):
    """Of a quadratic with noise: where it is taken matters."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    return x - 1 + 0.1 * torch.randn(SIZE, generator=draw)


def train(name, store, seconds, levels):
    """Weights after each step on one rank, whose steps take so many seconds."""
    x, rank = torch.nn.Parameter(torch.zeros(SIZE)), levels.all.index
    optimizer = PartialReduce([x], levels, LR, MU, program=algorithm(name), store=store)
    history = []
    for step in range(STEPS):
        time.sleep(seconds[rank])
        x.grad = gradient(x.detach(), step, rank)
        optimizer.step()
        history.append(x.detach().clone())
    return history, time.monotonic(), sum(levels.all.sent.values())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_groups_of_a_seed_average_what_sgd_gives(size):
    xs = [torch.nn.Parameter(torch.zeros(SIZE)) for _ in range(RANKS)]
    optimizers = [torch.optim.SGD([x], LR, momentum=MU) for x in xs]
    expected = []
    for step in range(STEPS):
        for rank, (x, optimizer) in enumerate(zip(xs, optimizers, strict=True)):
            x.grad = gradient(x.detach(), step, rank)
            optimizer.step()
        groups = {SeededRanks(7, size, RANKS, rank).members(step) for rank in range(RANKS)}
        assert sorted(rank for group in groups for rank in group) == list(range(RANKS))
        assert max(map(len, groups)) == size
        with torch.no_grad():
            for group in groups:
                mean = torch.stack([xs[rank] for rank in group]).mean(0)
                for rank in group:
                    xs[rank].copy_(mean)
        expected.append([x.detach().clone() for x in xs])
    name = f"partial-reduce:ready={size},seed=7"
    for rank, (history, _, _) in enumerate(run_ranks(partial(train, name, None, [0] * 4), RANKS)):
        for row, mine in zip(expected, history, strict=True):
            torch.testing.assert_close(mine, row[rank], rtol=1e-5, atol=1e-6)


def test_fast_ranks_do_not_wait_for_a_slow_one():
    seconds = [0.01, 0.01, 0.01, 0.15]
    rows = run_ranks(partial(train, "partial-reduce", SharedStore(), seconds), RANKS)
    ends = [end for _, end, _ in rows]
    assert max(ends[:3]) < ends[3] - seconds[3]
    assert (torch.stack([history[-1] for history, _, _ in rows]).mean(0) - 1).abs().max() < 0.5


def test_ranks_that_never_met_are_brought_together():
    assert first_ready([2], [], 2, 4) == ()
    assert first_ready([2, 0, 1], [], 2, 4) == (2, 0)
    apart = [(0, 1), (2, 3)] * 2
    assert first_ready([0, 1], apart, 2, 4) == ()
    assert first_ready([0, 1, 3], apart, 2, 4) == (0, 3)
    assert first_ready([0, 2], apart, 2, 4) == (0, 2)
    assert first_ready([0, 1], [*apart[1:], (1, 2)], 2, 4) == (0, 1)


def test_settings():
    assert algorithm("partial-reduce:ready=3").schedule.ready == 3
    with pytest.raises(UsageError, match="ready cannot be 1"):
        algorithm("partial-reduce:ready=1")
