"""Layers are dealt out anew where equal stages do not fit."""

from contextlib import suppress
from itertools import combinations

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import PlaitError
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.planner.search.driver import SearchSpace
from plait.planner.search.memory_balance import fitted
from plait.tests.zoo.decoders import llama

OPTIONS = PlanOptions(pins=pin_all("pp=4"), micro_batches=8, schedule="1f1b")


@pytest.fixture(scope="module")
def space():
    """Eight layers between a wide embedding and a wide head on four devices."""
    module, batch = llama(layers=8, vocab_size=3000)
    return SearchSpace.create(trace(module.train(), batch), load_cluster("4xh100"), OPTIONS)


def test_bounds_fit_wherever_any_do_and_are_as_fast_as_any(space):
    candidate = next(c for c in space.run() if c.model_chunks == 1)
    calls = len(space.pricer.calls)
    every = [
        space.pricer.mixed(candidate.assignment, (0, *inner, calls))
        for inner in combinations(range(1, calls), 3)
    ]
    every = [c for c in every if c is not None]
    chosen = set()
    limits = sorted({c.peak_bytes for c in every if c.peak_bytes < candidate.peak_bytes})
    for limit in limits:
        space.memory_limit_bytes = limit
        balanced = fitted(space, candidate)
        assert balanced.peak_bytes <= limit
        best = min(c.step_seconds for c in every if c.peak_bytes <= limit)
        assert balanced.step_seconds <= 1.001 * best
        chosen.add(balanced.bounds)
    assert len(chosen) > 1
    space.memory_limit_bytes = limits[0] - 1
    assert fitted(space, candidate) is None


@pytest.mark.parametrize("micro_batches", [-1, 0, 3, 5, 64])
def test_any_number_of_micro_batches_gives_a_plan_or_a_reason(traced, micro_batches):
    options = PlanOptions(roles=("dp", "pp"), micro_batches=micro_batches)
    answer = None
    with suppress(PlaitError):  # and nothing else
        answer = plan(traced("gpt2"), load_cluster("4xh100"), options)
    assert answer is None or answer.micro_batches == micro_batches
