"""Which candidates memory actions are tried on."""

from math import inf

from plait.ir.plan.strategy import parse_strategy
from plait.planner.activations.ladder import TRIED, memory_saving_candidates
from plait.planner.question.candidate import Assignment, Candidate, RunPoint
from plait.planner.question.deadline import Deadline

LIMIT, SAVED = 100, 60


def candidate(text, seconds, peak_bytes):
    point = RunPoint(parse_strategy(text), 16, 1)
    return Candidate(Assignment.uniform(point, 1), (0, 1), seconds, 0.0, lambda: peak_bytes)


def test_the_smallest_that_splits_devices_like_a_fast_one_is_tried():
    """Its layers mix with those of the fast ones, of which none fits."""
    fast = [candidate("dp=16,tp=4", 1.0 + n / 1000, 300 + n) for n in range(TRIED)]
    smallest, other = candidate("zero3=16,tp=4", 1.1, 150), candidate("zero3=8,tp=8", 1.2, 140)
    fits = candidate("pp=4,dp=16", 2.0, 50)
    tried = []

    def price(point):
        tried.append(str(point.strategy))
        return candidate(str(point.strategy), inf, LIMIT - SAVED)

    memory_saving_candidates(
        [*fast, smallest, other, fits],
        LIMIT,
        price,
        ("keep", "recompute", "offload"),
        Deadline(None),
    )
    assert {*tried} == {"dp=16,tp=4", "zero3=16,tp=4"}
