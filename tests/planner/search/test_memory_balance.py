"""Layers pass from full stages to emptier ones where equal ones do not fit."""

from contextlib import suppress

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.errors import PlaitError
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.planner.search.driver import SearchSpace
from plait.planner.search.memory_balance import fitted, passed_on


def test_stages_between_pass_one_on():
    assert passed_on((0, 4, 8, 12, 16), 0, 2) == (0, 3, 7, 12, 16)
    assert passed_on((0, 4, 8, 12, 16), 3, 1) == (0, 4, 9, 13, 16)
    assert passed_on((0, 1, 2), 0, 1) is None


def test_an_uneven_plan_fits_where_an_even_one_does_not(traced):
    model, cluster = traced("gpt2"), load_cluster("2xh100")
    space = SearchSpace.create(model, cluster, PlanOptions(pins=pin_all("pp=2"), micro_batches=4))
    space.run()
    candidate = max(space.candidates, key=lambda c: c.peak_bytes)
    peaks = [stage.peak_bytes for stage in space.pricer.stages(candidate)]
    fullest, emptiest = peaks.index(max(peaks)), peaks.index(min(peaks))
    bounds = passed_on(candidate.bounds, emptiest, fullest)  # worse than the search's own
    assert bounds is not None
    uneven = space.pricer.mixed(candidate.assignment, bounds)
    assert uneven is not None
    space.memory_limit_bytes = uneven.peak_bytes - 1
    balanced = fitted(space, uneven)
    assert balanced is not None
    assert balanced.peak_bytes < uneven.peak_bytes
    assert balanced.bounds == candidate.bounds


@pytest.mark.parametrize("micro_batches", [-1, 0, 3, 5, 64])
def test_any_number_of_micro_batches_gives_a_plan_or_a_reason(traced, micro_batches):
    options = PlanOptions(roles=("dp", "pp"), micro_batches=micro_batches)
    answer = None
    with suppress(PlaitError):  # and nothing else
        answer = plan(traced("gpt2"), load_cluster("4xh100"), options)
    assert answer is None or answer.micro_batches == micro_batches
