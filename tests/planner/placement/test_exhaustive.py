"""Against every placement of small graphs: what is called optimal is, gaps are true, nothing is
missed that fits."""

import random

import pytest

from plait.ir.errors import InfeasibleError, LimitError
from plait.ir.plan.placement import PlacementDevice, PlacementLink, PlacementTarget
from plait.planner.placement import PlacementOptions
from plait.planner.placement.search import place
from plait.tests.planner.placement.everything import Rules
from plait.tests.planner.placement.graphs import random_graph
from plait.tests.sampling import some

CASES = 300
LINKS = ("parallel", "duplex", "half-duplex")


def random_target(seed: int, total_bytes: float) -> PlacementTarget:
    rng = random.Random(seed)
    room = max(6, int(total_bytes * rng.choice((0.5, 0.7, 2.0))))
    speeds = rng.choice(((1.0, 1.0), (1.0, 2.0), (1.0, 0.5)))
    links = rng.choice(((0.0, 1.0), (1.0, 0.5), (3.0, 2.0)))
    devices = tuple(PlacementDevice(room + rng.choice((0, 0, 5)), speed) for speed in speeds)
    return PlacementTarget(devices, ((PlacementLink(*links),),))


def case(seed: int):
    """Large graphs are dense, so that they have few orders."""
    graph = random_graph(seed, 9 if seed % 10 == 0 else 5)
    if len(graph.nodes) > 5:
        chain = [(i, i + 1) for i in range(len(graph.nodes) - 1) if i % 4]
        known = {(e.src, e.dst) for e in graph.edges}
        extra = tuple(type(graph.edges[0])(u, w, 2) for u, w in chain if (u, w) not in known)
        graph = type(graph)(graph.nodes, graph.edges + extra, graph.name)
    total = sum(n.mem_persistent + n.mem_output for n in graph.nodes)
    rule = "infer" if seed % 5 == 4 else "train"
    return graph, random_target(seed, total), LINKS[seed % 3], rule


@pytest.mark.parametrize("seed", some(range(CASES), 3))
def test_gaps_are_true_and_nothing_that_fits_is_missed(seed):
    graph, target, link, rule = case(seed)
    least = Rules(graph, target, link, rule).best()
    options = PlacementOptions(link=link, memory_rule=rule, effort_seconds=0.5)
    try:
        placement = place(graph, target, options).placement
    except (InfeasibleError, LimitError):  # proved, or nothing was found
        assert least == float("inf")
        return
    assert placement.makespan_us >= least - 1e-9
    assert placement.lower_bound_us <= least + 1e-9
    assert (placement.makespan_us - least) / placement.makespan_us <= placement.gap + 1e-12
    assert (
        max(p - d.memory_bytes for p, d in zip(placement.peak_memory, target.devices, strict=True))
        <= 0
    )
