"""Deadlines: they pass when the clock says so, share a start, and can be stopped."""

from math import inf

from plait.planner.question.deadline import Deadline
from plait.tests.planner.ticking_clock import TickingClock


def test_it_passes_at_the_limit():
    deadline = Deadline(3.0, TickingClock(1.0))
    assert [deadline.passed() for _ in range(4)] == [False, False, True, True]
    assert deadline.stopped


def test_without_a_limit_only_a_stop_ends_it():
    deadline = Deadline(None, TickingClock(1e9))
    assert not deadline.passed()
    assert deadline.seconds_left == inf
    deadline.stop()
    assert deadline.passed()


def test_another_limit_counts_from_the_same_start():
    clock = TickingClock(1.0)
    deadline = Deadline(10.0, clock)
    clock.seconds = 5.0
    assert deadline.limited(6.0).seconds_left == 1.0
    assert deadline.seconds_left == 4.0
