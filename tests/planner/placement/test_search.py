"""The portfolio: never over memory, never worse than a member, the same every time, on time."""

import msgspec
import numpy as np
import pytest

import plait
from plait.cost_model.placement.arrays import graph_arrays
from plait.ir.errors import InfeasibleError, UsageError
from plait.ir.plan.placement import (
    PlacementDevice,
    PlacementEdge,
    PlacementGraph,
    PlacementLink,
    PlacementNode,
    PlacementTarget,
    uniform_target,
)
from plait.planner.placement import PlacementOptions
from plait.planner.placement.algorithms.anneal import anneal, settle, walk_from
from plait.planner.placement.algorithms.coarse import chains, units
from plait.planner.placement.algorithms.earliest import etf
from plait.planner.placement.algorithms.ranked import ranked
from plait.planner.placement.bounds import lower_bound_us
from plait.planner.placement.options import ALGORITHMS, LINKS, RULES
from plait.planner.placement.portfolio import PlacementSearch, constructive
from plait.planner.placement.problem import Cooling, PlacementProblem
from plait.planner.placement.repair import repaired
from plait.planner.placement.search import place
from plait.planner.question.deadline import Deadline
from plait.tests.planner.placement.graphs import layered, random_graph
from plait.tests.planner.ticking_clock import TickingClock
from plait.tests.sampling import some


def target(graph: PlacementGraph, room: float = 3.0, devices: int = 4) -> PlacementTarget:
    total = sum(n.mem_persistent + n.mem_output for n in graph.nodes)
    return uniform_target(devices, room * total, 10.0, 1e-4)


@pytest.mark.parametrize("link", some(LINKS, 3))
def test_never_worse_than_a_member(link):
    graph = layered(120, 1)
    options = PlacementOptions(link=link, seconds=1.0)
    placement = place(graph, target(graph), options, clock=lambda: 0.0).placement
    problem = PlacementProblem(graph_arrays(graph, target(graph)), link, "train")
    for make in constructive(problem):
        member = make()
        assert member is None or member.over_bytes or placement.makespan_us <= member.makespan_us
    assert placement.lower_bound_us <= placement.makespan_us


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", some(ALGORITHMS, 2))
def test_every_algorithm_fits_tight_memory(algorithm, rule):
    graph = layered(60, 2)
    tight = target(graph, 0.40)
    options = PlacementOptions(algorithm, "duplex", rule, 2.0)
    found = place(graph, tight, options).placement
    assert max(found.peak_memory) <= tight.devices[0].memory_bytes
    assert set(found.device.values()) <= set(range(4))
    assert len(set(found.device.values())) > 1


def test_the_same_placement_every_time():
    graph = layered(80, 3)
    options = PlacementOptions(effort_seconds=1.0)
    first, second = (place(graph, target(graph, 0.5), options).placement for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_a_time_limit_is_kept():
    """A clock that advances whenever the search looks at it: past the limit it looks no more often
    than phases and searches need to end."""
    graph, clock = layered(300, 4), TickingClock(0.25)
    outcome = place(graph, target(graph), PlacementOptions(seconds=3.0), clock)
    assert outcome.timed_out
    assert 3.0 <= clock.seconds <= 3.0 + 12 * clock.tick


def test_infeasible_is_proved_and_says_what_lacks():
    graph = layered(30, 5)
    with pytest.raises(InfeasibleError, match=r"no placement fits: .* bytes on device \d"):
        place(graph, target(graph, 0.2), PlacementOptions(seconds=5.0))


def test_fractions_of_bytes_count():
    nodes = tuple(PlacementNode(i, 1.0, mem_persistent=0.02) for i in range(3))
    with pytest.raises(InfeasibleError, match="no placement fits"):
        place(PlacementGraph(nodes, ()), uniform_target(2, 0.03, 0.0, 1.0))


def test_unknown_names_are_refused():
    graph = layered(10, 6)
    for options in (PlacementOptions("best"), PlacementOptions(link="wide")):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="known"):
            place(graph, target(graph), options)


@pytest.mark.parametrize("says", [{"alpha_us": -1.0}, {"beta_us_per_byte": float("nan")}])
def test_links_that_cannot_be_are_refused(says):
    with pytest.raises(UsageError, match="not a sensible value"):
        plait.place(layered(10, 6), devices=2, memory=2**30, **says)


def test_groups_stay_together_when_asked():
    graph = layered(40, 7)
    nodes = tuple(msgspec.structs.replace(n, colocation=n.id % 5) for n in graph.nodes)
    grouped = msgspec.structs.replace(graph, nodes=nodes)
    options = PlacementOptions(seconds=1.0, colocation=True)
    found = place(grouped, target(grouped, 0.5), options).placement
    for group in range(5):
        assert len({found.device[str(i)] for i in range(group, 40, 5)}) == 1


def test_work_goes_to_fast_devices_and_near_links():
    nodes = tuple(PlacementNode(i, 10.0) for i in range(6))
    graph = PlacementGraph(nodes, tuple(PlacementEdge(0, i, 100, 0) for i in range(1, 6)))
    near, far = PlacementLink(1.0, 0.0), PlacementLink(1000.0, 0.0)
    links = ((near, near, far), (near, near, far), (far, far, near))
    devices = (PlacementDevice(1e3, 2.0), PlacementDevice(1e3, 1.0), PlacementDevice(1e3, 1.0))
    placement = place(
        graph, PlacementTarget(devices, links), PlacementOptions(seconds=2.0)
    ).placement
    assert placement.device["0"] == 0
    assert set(placement.device.values()) == {0, 1}
    assert placement.makespan_us == pytest.approx(
        25.0
    )  # 5, then four of 5 on device 0 and one on 1
    assert placement.status == "optimal"


def test_the_walk_knows_its_makespan():
    """What the local search stores and resumes is what a simulation from zero gives."""
    graph = layered(150, 8)
    problem = PlacementProblem(graph_arrays(graph, target(graph)), "duplex", "train")
    start, blocks = ranked(problem), units(problem)
    walk = walk_from(problem, start, blocks)
    for seed in range(20):
        cooling = Cooling(seed, 50, 50.0, 1.0)
        anneal(problem.instance, blocks, problem.tail_us, walk, cooling)
        assert walk.spans[0] == problem.evaluate_keys("now", walk.device, walk.key).makespan_us
        assert (
            walk.spans[1]
            == problem.evaluate_keys("best", walk.best_device, walk.best_key).makespan_us
        )
        settle(problem.instance, walk, 0)
    assert walk.spans[1] < start.makespan_us


def test_repair_makes_room():
    graph = layered(80, 9)
    problem = PlacementProblem(graph_arrays(graph, target(graph, 0.4)), "duplex", "train")
    device = np.zeros(problem.operators, np.int64)
    broken = problem.evaluate_order("all on one", device, np.arange(problem.operators))
    assert broken.over_bytes > 0
    assert repaired(problem, broken, 0, 5000).over_bytes == 0


def test_chains_are_blocks_and_nothing_else():
    nodes = tuple(PlacementNode(i, 1.0) for i in range(5))
    edges = tuple(PlacementEdge(u, w, 1) for u, w in ((0, 1), (1, 2), (2, 3), (2, 4)))
    work = graph_arrays(PlacementGraph(nodes, edges), uniform_target(2, 9, 0, 1))
    problem = PlacementProblem(work, "duplex", "train")
    of = chains(problem).of
    assert of[0] == of[1] == of[2]
    assert len(set(of.tolist())) == 3


@pytest.mark.parametrize("seed", some(range(40), 3))
def test_bounds_are_below_every_schedule(seed):
    graph = random_graph(seed, 30)
    for link in LINKS:
        problem = PlacementProblem(
            graph_arrays(graph, uniform_target(3, 1e9, 2.0, 1.0)), link, "train"
        )
        bound = lower_bound_us(problem)
        assert all(
            c is None or bound <= c.makespan_us + 1e-9
            for c in (make() for make in constructive(problem))
        )


def test_large_graphs_are_placed():
    graph = layered(10_000, 10)
    problem = PlacementProblem(graph_arrays(graph, target(graph)), "duplex", "train")
    assert sorted(etf(problem).order.tolist()) == list(range(10_000))


def test_a_constraint_model_closes_a_small_gap():
    graph = random_graph(3, 9, 9)
    problem = PlacementProblem(
        graph_arrays(graph, uniform_target(2, 1e9, 1.0, 1.0)), "parallel", "train"
    )
    search = PlacementSearch(problem, PlacementOptions(link="parallel"), Deadline())
    search.construct()
    search.constrain(5.0)
    assert search.closed
