"""Ranks that lie: rules that outlive them, and one that a clever lie defeats."""

import pytest
import torch

from plait.ir.compression.registry import PROGRAMS
from plait.runtime.compression.exchange import BucketOptions, CompressedCollective
from plait.runtime.compression.score import zeno_score
from plait.runtime.compression.threads import run_ranks

RANKS, SIZE = 4, 256
RULES = ("trimmed-mean", "median", "phocas", "krum", "zeno")
TARGET = torch.linspace(-1, 1, SIZE)


def loss(x):
    return 0.5 * float((x - TARGET).square().sum())


def gradients(x, step, noise, ranks=RANKS - 1):
    draw = torch.Generator().manual_seed(step)
    return [x - TARGET + noise * torch.randn(SIZE, generator=draw) for _ in range(ranks)]


def garbage(honest):
    return -100 * torch.stack(honest).mean(0)


def inner_product(scale):
    """A small step the other way: hidden among honest gradients, and turned against their mean."""
    return lambda honest: -scale * torch.stack(honest).mean(0)


def reduced(rule, rows, scores=None):
    """What all ranks get when each sends one of `rows`."""
    program = PROGRAMS[f"{rule}.gradients"]

    def work(levels):
        exchange = CompressedCollective(program, levels, SIZE, BucketOptions(small_bytes=0))
        return exchange.all_reduce(rows[levels.all.index], scores)

    results = run_ranks(work, len(rows))
    assert all(torch.equal(results[0], other) for other in results)
    return results[0]


def descend(rule, attack, noise=0.1, steps=40):
    """Distance to the optimum, relative to where it started, with one Byzantine rank of four."""
    x = torch.zeros(SIZE)
    for step in range(steps):
        honest = gradients(x, step, noise)
        rows = [*honest, attack(honest)]
        if rule == "mean":
            change = torch.stack(rows).mean(0)
        else:
            change = reduced(rule, rows, scores_of(x, rows) if rule == "zeno" else None)
        x = x - 0.3 * change
    return (loss(x) / loss(torch.zeros(SIZE))) ** 0.5


def scores_of(x, rows):
    """Zeno's: how much each candidate lowers the loss on data of one's own."""
    return torch.tensor([zeno_score(loss(x), loss(x - 0.3 * row), row, 1e-4) for row in rows])


@pytest.mark.parametrize("rule", RULES)
def test_one_liar_of_four_is_outlived(rule):
    assert descend(rule, garbage) < 0.3


def test_the_mean_is_not_robust():
    assert not descend("mean", garbage) < 10


@pytest.mark.parametrize("rule", RULES)
def test_a_large_inner_product_manipulation_is_outlived(rule):
    """The mean turns round at a scale of 3, the number of honest ranks; these rules do not."""
    assert descend("mean", inner_product(4)) > 1
    assert descend(rule, inner_product(4)) < 0.3


def test_a_small_inner_product_manipulation_fools_krum_but_not_zeno():
    """When honest gradients differ more from each other than from zero, Krum takes the liar's."""
    honest = gradients(torch.zeros(SIZE), 0, noise=3.0, ranks=4)
    rows = [*honest, inner_product(0.1)(honest)]
    mean = torch.stack(honest).mean(0)
    assert float(reduced("krum", rows) @ mean) < 0
    reduced_row = reduced("zeno", rows, scores_of(torch.zeros(SIZE), [0.1 * row for row in rows]))
    torch.testing.assert_close(reduced_row, mean)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_a_number_is_outlived_or_seen(rule):
    """Never silently used: the result is right, or it is not a number."""
    honest = gradients(torch.zeros(SIZE), 0, 0.1)
    rows = [*honest, torch.full((SIZE,), float("inf"))]
    result = reduced(rule, rows, torch.tensor([1.0, 2.0, 3.0, -1e9]))
    mean = torch.stack(honest).mean(0)
    assert (result - mean).norm() < mean.norm() or not torch.isfinite(result).all()
