"""Optimizers and exchanges under other settings, against what they say, written anew."""

from functools import partial

import pytest
import torch
from msgspec.structs import replace

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.registry import PROGRAMS, algorithm
from plait.runtime.compression.exchange import BucketOptions, CompressedCollective
from plait.runtime.compression.optimizers.registry import OPTIMIZERS
from plait.runtime.compression.threads import run_ranks

RANKS, ROWS, WIDTH, STEPS = 4, 12, 20, 9
UNTOUCHED = (3, 7, 11)
SIZE = 64


def embedding(name, levels, **options):
    """Rows of an embedding after steps in which some were never read, and how those moved."""
    weight = torch.nn.Parameter(torch.ones(ROWS, WIDTH))
    chosen = algorithm(name)
    optimizer = OPTIMIZERS[chosen.optimizer](
        [weight], levels, program=chosen, small_bytes=0, **options
    )
    touched = torch.tensor([row for row in range(ROWS) if row not in UNTOUCHED])
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(10 * step + levels.all.index)
        weight.grad = torch.zeros(ROWS, WIDTH)
        weight.grad[touched] = torch.randn(len(touched), WIDTH, generator=draw)
        optimizer.step()
    moved = (weight.detach() - 1).abs().amax(1)
    return moved[list(UNTOUCHED)].max().item(), moved[touched].min().item()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one-bit", {"base": torch.optim.Adam}),
        ("clan", {}),
        ("step-ahead", {}),
        ("sign-momentum:every=3", {"weight_decay": 0.0, "base": torch.optim.Adam}),
        ("1-bit-adam:warmup=3", {}),
        ("0/1-adam:warmup=3,every=2", {}),
        ("1-bit-lamb:warmup=3", {}),
    ],
)
def test_a_row_that_nobody_touched_does_not_move(name, options):
    for untouched, touched in run_ranks(partial(embedding, name, **options), 2, 2):
        assert untouched == 0
        assert touched > 0


def test_one_bit_cannot_say_zero():
    ((untouched, _), *_) = run_ranks(partial(embedding, "one-bit:zeros=0"), 2, 2)
    assert untouched > 0


def test_a_thousandth_is_unbiased():
    """Over steps, the mean of what is sent is the mean of what was there."""
    program, elements = PROGRAMS["random-k:rate=50.gradients"], 400
    rows = torch.stack([torch.full((elements,), float(r)) for r in range(RANKS)])

    def mean(levels):
        exchange = CompressedCollective(program, levels, elements, BucketOptions(small_bytes=0))
        return sum(exchange.all_reduce(rows[levels.all.index]) for _ in range(500)) / 500

    found = run_ranks(mean, RANKS)[0]
    assert (found != 0).all()
    assert float(found.mean()) == pytest.approx(1.5, rel=0.02)


def exact(name):
    chosen = algorithm(name)
    return replace(chosen, programs=tuple(uncompressed(p) for p in chosen.programs))


def gradient(step, rank):
    draw = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(SIZE, generator=draw) + 0.5


def run(chosen, levels, steps, **options):
    x = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = OPTIMIZERS[chosen.optimizer]([x], levels, program=chosen, small_bytes=0, **options)
    for step in range(steps):
        x.grad = gradient(step, levels.all.index)
        optimizer.step()
    return x.detach().clone()


def frozen_adam(steps, warmup, lr, corrected):
    """Adam on mean gradients; after the freeze as in DeepSpeed: momentum over the root, no more."""
    x, m, v = (torch.zeros(SIZE, dtype=torch.float64) for _ in range(3))
    for step in range(steps):
        mean = torch.stack([gradient(step, r) for r in range(RANKS)]).double().mean(0)
        m = 0.9 * m + 0.1 * mean
        if step < warmup:
            v = 0.999 * v + 0.001 * mean**2
        if step < warmup or corrected:
            second = 1 - 0.999 ** min(step + 1, warmup)
            x = x - lr * m / (1 - 0.9 ** (step + 1)) / ((v / second).sqrt() + 1e-8)
        else:
            x = x - lr * m / (v.sqrt() + 1e-8)
    return x.float()


@pytest.mark.parametrize("corrected", [True, False])
def test_one_bit_adam_after_the_freeze(corrected):
    options = {"lr": 1e-3, "bias_correction": corrected}
    weights = run_ranks(partial(run, exact("1-bit-adam:warmup=5"), steps=9, **options), RANKS)[0]
    expected = frozen_adam(9, 5, 1e-3, corrected)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    other = frozen_adam(9, 5, 1e-3, not corrected)
    assert (weights - other).abs().max() > 1e-3  # the two differ, so the test can fail


def zero_one_adam(steps, warmup, doubles, most, lr):
    """0/1 Adam with exact exchanges, as published: local steps, then movements are averaged."""
    x = torch.zeros(RANKS, SIZE, dtype=torch.float64)
    m, v, moved = torch.zeros_like(x), torch.zeros(SIZE, dtype=torch.float64), torch.zeros_like(x)
    start, rates, interval, since = x.clone(), 0.0, 1, 0
    for step in range(steps):
        g = torch.stack([gradient(step, r) for r in range(RANKS)]).double()
        if step < warmup:
            m = 0.9 * m + 0.1 * g.mean(0)
            v = 0.999 * v + 0.001 * g.mean(0) ** 2
            root = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            x = x - lr * m / (1 - 0.9 ** (step + 1)) / root
            start = x.clone()
            continue
        root = (v / (1 - 0.999**warmup)).sqrt() + 1e-8
        m = 0.9 * m + 0.1 * g
        moved, rates = moved - lr * m / root, rates + lr
        x = x - lr * m / root
        if (step - warmup + 1) % interval == 0:
            mean = (moved * root).mean(0).expand_as(x)
            m, start = -mean / rates, start + mean / root
            x, moved, rates = start.clone(), torch.zeros_like(x), 0.0
        since += 1
        if since == doubles:
            since, interval = 0, min(most, 2 * interval)
    return x.float()


def test_zero_one_adam_with_doubling_intervals():
    name = "0/1-adam:warmup=4,every=1,doubles=4,most=8"
    work = partial(run, exact(name), steps=21, lr=1e-2)
    expected = zero_one_adam(21, 4, 4, 8, 1e-2)
    for found, row in zip(run_ranks(work, RANKS), expected, strict=True):
        torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-5)
    fixed = zero_one_adam(21, 4, 100, 8, 1e-2)
    assert (fixed - expected).abs().max() > 1e-3


def lans(steps, lr, decay):
    """LANS on mean gradients of one tensor, in float64, as published."""
    x, m, v = (torch.zeros(SIZE, dtype=torch.float64) for _ in range(3))
    for step in range(steps):
        g = torch.stack([gradient(step, r) for r in range(RANKS)]).double().mean(0)
        g = g / g.norm()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        root = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        change = torch.zeros_like(x)
        for share, part in ((0.9, m / (1 - 0.9 ** (step + 1))), (0.1, g)):
            d = part / root + decay * x
            change += share * (d * x.norm() / d.norm() if x.norm() > 0 else d)
        x = x - lr * change
    return x.float()


def test_clan_without_loss_is_lans():
    work = partial(run, exact("clan"), steps=6, lr=0.02, weight_decay=0.1)
    for weights in run_ranks(work, RANKS):
        torch.testing.assert_close(weights, lans(6, 0.02, 0.1), rtol=1e-4, atol=1e-6)
