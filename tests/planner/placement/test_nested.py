"""More devices are never slower than fewer of them, and never take longer to search."""

import numpy as np
import pytest

from plait.cost_model.placement.arrays import graph_arrays
from plait.ir.errors import InfeasibleError
from plait.ir.plan.placement import PlacementDevice, PlacementLink, PlacementTarget, uniform_target
from plait.planner.placement import PlacementOptions, portfolio
from plait.planner.placement import search as search_module
from plait.planner.placement.nested import first_devices, rungs_of
from plait.planner.placement.options import LINKS
from plait.planner.placement.problem import PlacementProblem
from plait.planner.placement.search import place
from plait.tests.planner.placement.graphs import layered, random_graph
from plait.tests.planner.ticking_clock import TickingClock
from plait.tests.sampling import some

QUICK = 0.02  # seconds of effort: a search that is far from done


def makespan(graph, target, link):
    try:
        options = PlacementOptions(link=link, effort_seconds=QUICK)
        return place(graph, target, options).placement.makespan_us
    except InfeasibleError:
        return float("inf")


@pytest.mark.parametrize("link", some(LINKS, 3))
def test_more_devices_are_never_slower(link):
    graph = layered(50, 0)
    room = 0.7 * sum(n.mem_persistent + n.mem_output for n in graph.nodes)
    spans = {n: makespan(graph, uniform_target(n, room, 100.0, 1e-3), link) for n in (2, 4, 5)}
    assert spans[5] <= spans[4] <= spans[2] < float("inf")


def test_devices_and_links_that_differ_are_added_at_the_end():
    rng = np.random.default_rng(1)
    graph = random_graph(0, 40, 30)
    devices = tuple(PlacementDevice(200.0, float(rng.choice([0.5, 1.0, 2.0]))) for _ in range(5))
    links = tuple(tuple(PlacementLink(*rng.integers(0, 9, 2)) for _ in range(5)) for _ in range(5))
    spans = [
        makespan(
            graph, PlacementTarget(devices[:n], tuple(row[:n] for row in links[:n])), "half-duplex"
        )
        for n in (2, 4, 5)
    ]
    assert spans == sorted(spans, reverse=True)


def test_the_first_devices_are_a_problem_of_their_own():
    graph = random_graph(4, 20)
    many, few = (
        PlacementProblem(graph_arrays(graph, uniform_target(n, 50.0, 1.0, 2.0)), "duplex", "train")
        for n in (6, 4)
    )
    part = first_devices(many, 4)
    assert part.devices == 4
    for ours, theirs in zip(part.work[:-1], few.work[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rungs_are_powers_of_two_and_all():
    assert [rungs_of(n) for n in (1, 2, 3, 4, 6, 16)] == [
        [1],
        [2],
        [2, 3],
        [2, 4],
        [2, 4, 6],
        [2, 4, 8, 16],
    ]


def test_many_devices_keep_the_time_limit():
    """A clock that advances whenever the searches of all rungs look at it."""
    graph, clock = layered(150, 4), TickingClock(0.125)
    total = sum(n.mem_persistent + n.mem_output for n in graph.nodes)
    limits = PlacementOptions(seconds=1.5)
    outcome = place(graph, uniform_target(16, total, 10.0, 1e-4), limits, clock)
    assert outcome.timed_out
    assert clock.seconds <= 1.5 + 40 * clock.tick


def test_more_than_all_devices_have_is_proved_by_counting(monkeypatch):
    """No constraint model is solved and no local search runs."""
    graph = layered(2000, 6)
    total = sum(n.mem_persistent + n.mem_output for n in graph.nodes)
    for work in ("find_fitting", "repaired", "ExactModel", "anneal"):
        monkeypatch.setattr(portfolio, work, None)  # a call would raise
    monkeypatch.setattr(search_module, "warm", lambda: None)  # which calls them on a tiny graph
    with pytest.raises(InfeasibleError, match="no placement fits"):
        place(graph, uniform_target(4, 0.24 * total, 1.0, 1e-4), PlacementOptions())
