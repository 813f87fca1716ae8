"""Gradients that arrive steps late: nothing at all without delay, so many steps and no more with it."""

from functools import partial

import pytest
import torch

from plait.ir.compression.registry import algorithm
from plait.ir.errors import UsageError
from plait.runtime.compression.optimizers.stale_sgd import COMPENSATIONS, StaleSGD
from plait.runtime.compression.threads import run_ranks

RANKS, SIZE, STEPS, LR, MU = 2, 24, 7, 0.05, 0.9


def gradient(x, step, rank):
    """Of a quadratic with noise: where it is taken matters."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    return x - 1 + 0.1 * torch.randn(SIZE, generator=draw)


def run(name, levels, compensate="none", stop=None):
    """Weights after each step on one rank; with `stop`, states pass through a copy after that step."""

    def create():
        x = torch.nn.Parameter(torch.zeros(SIZE))
        return x, StaleSGD([x], levels, LR, MU, compensate, program=algorithm(name), small_bytes=0)

    x, optimizer = create()
    history = []
    for step in range(STEPS):
        x.grad = gradient(x.detach(), step, levels.all.index)
        optimizer.step()
        history.append(optimizer.weights()[0])
        if step == stop:
            parameter, saved = x.detach().clone(), optimizer.state_dict()
            x, optimizer = create()
            optimizer.load_state_dict(saved)
            with torch.no_grad():
                x.copy_(parameter)
    return history


def sgd():
    """torch's own, on the mean gradient of two ranks in one process."""
    x = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = torch.optim.SGD([x], LR, momentum=MU)
    history = []
    for step in range(STEPS):
        rows = [gradient(x.detach(), step, rank) for rank in range(RANKS)]
        x.grad = (rows[0] + rows[1]) / 2
        optimizer.step()
        history.append(x.detach().clone())
    return history


def late_sgd(compensate, delay):
    """Every rank's weights with gradients that are used `delay` steps later, written anew."""
    w, m, pending = torch.zeros(SIZE), torch.zeros(SIZE), []
    places, then, history = [torch.zeros(SIZE)] * RANKS, torch.zeros(SIZE), []
    for step in range(STEPS):
        pending.append([gradient(place, step, rank) for rank, place in enumerate(places)])
        if step >= delay:
            mean = torch.stack(pending.pop(0)).mean(0)
            if compensate == "curvature":
                mean = mean + mean**2 * (w - then)
            then = w
            m = MU * m + mean
            w = w - LR * m
            places = [w] * RANKS
            if compensate == "prediction":
                places = [ahead(w, m, [rows[rank] for rows in pending]) for rank in range(RANKS)]
        history.append(w)
    return history


def ahead(w, m, gradients):
    """Where momentum SGD leads by these gradients."""
    for row in gradients:
        m = MU * m + row
        w = w - LR * m
    return w


def test_without_delay_it_is_torchs_sgd_bit_for_bit():
    for compensate in COMPENSATIONS:
        for history in run_ranks(partial(run, "stale-sgd:delay=0", compensate=compensate), RANKS):
            assert all(torch.equal(a, b) for a, b in zip(history, sgd(), strict=True))


CASES = [("stale-sgd", 1, compensate) for compensate in COMPENSATIONS]
CASES += [("stale-sgd:delay=3", 3, "prediction"), ("stale-sgd:delay=2", 2, "none")]


@pytest.mark.parametrize(("name", "delay", "compensate"), CASES)
def test_with_delay_every_gradient_is_used_steps_later(name, delay, compensate):
    expected = late_sgd(compensate, delay)
    for history in run_ranks(partial(run, name, compensate=compensate), RANKS):
        for weights, row in zip(history, expected, strict=True):
            torch.testing.assert_close(weights, row, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected[-1], sgd()[-1], rtol=1e-3)  # the delay can be seen


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize(("name", "delay", "compensate"), CASES)
def test_what_is_under_way_is_in_the_states(name, delay, compensate, stop):
    """Bit for bit the same after states were saved and loaded between two steps."""
    whole = run_ranks(partial(run, name, compensate=compensate), RANKS)
    parted = run_ranks(partial(run, name, compensate=compensate, stop=stop), RANKS)
    assert torch.equal(whole[0][-1], parted[0][-1])


def test_an_unknown_compensation_is_refused():
    with pytest.raises(UsageError, match="prediction"):
        run_ranks(partial(run, "stale-sgd", compensate="guess"), 1)
    with pytest.raises(UsageError, match="for a delay of 1, not 2"):
        run_ranks(partial(run, "stale-sgd:delay=2", compensate="curvature"), 1)
    with pytest.raises(UsageError, match="delay cannot be 9"):
        algorithm("stale-sgd:delay=9")
