"""m-ETF, m-SCT and m-TOPO do on the published examples what they are said to do."""

import numpy as np
import pytest

from plait.cost_model.placement.arrays import graph_arrays
from plait.ir.plan.placement import PlacementEdge, PlacementGraph, PlacementNode, uniform_target
from plait.planner.placement.algorithms.earliest import SEQUENTIAL_TRANSFERS, etf, sct
from plait.planner.placement.algorithms.favourites import favourite_children, relaxed
from plait.planner.placement.algorithms.topo import topo
from plait.planner.placement.problem import PlacementProblem
from plait.tests.planner.placement.graphs import figure

# The makespans of Baechi's own placers on its own examples, with parallel and sequential transfers.
MAKESPANS = {
    "fig1": (9, 9, 9, 9),
    "fig2": (14, 14, 14, 14),
    "fig21": (22, 24, 22, 22),
    "fig3": (29, 30, 29, 32),
}


def problem(graph: PlacementGraph, devices: int = 2, memory: float = 1e9, alpha: float = 0.0):
    return PlacementProblem(
        graph_arrays(graph, uniform_target(devices, memory, alpha, 0.0)), "parallel", "train"
    )


@pytest.mark.parametrize("name", MAKESPANS)
def test_makespans_of_the_published_examples(name):
    example = problem(figure(name), 3 if name == "fig3" else 2, 4.0)
    makespans = (
        etf(example),
        sct(example),
        etf(example, SEQUENTIAL_TRANSFERS),
        sct(example, SEQUENTIAL_TRANSFERS, 0.1),
    )
    assert tuple(c.makespan_us for c in makespans) == MAKESPANS[name]


def test_etf_starts_what_can_start_and_does_not_wait():
    found = etf(problem(figure("fig2")))
    assert found.device.tolist() == [0, 1, 0, 1]


def test_a_device_waits_for_a_favourite_child():
    """`3` costs 8 us anywhere but beside `0`, so it is the favourite, and placed there."""
    nodes = tuple(PlacementNode(i, us) for i, us in enumerate((2.0, 1.0, 2.0, 9.0, 9.0)))
    edges = (
        PlacementEdge(0, 3, 0, comm_us=8.0),
        PlacementEdge(1, 3, 0, comm_us=1.0),
        PlacementEdge(2, 4, 0, comm_us=8.0),
    )
    given = problem(PlacementGraph(nodes, edges))
    assert favourite_children(given, relaxed(given), 0.5).tolist() == [3, -1, 4, -1, -1]
    device = sct(given).device
    assert device[0] == device[3]
    assert device[2] == device[4]


def test_favourites_are_one_to_one():
    for name in MAKESPANS:
        given = problem(figure(name))
        children = favourite_children(given, relaxed(given), 0.5)
        present = children[children >= 0]
        assert len(present) == len(np.unique(present))
        assert len(present)


def test_topo_fills_one_device_after_another():
    nodes = tuple(PlacementNode(i, 1.0, mem_persistent=10) for i in range(8))
    found = topo(problem(PlacementGraph(nodes, ()), 4, 100.0))
    assert found.device.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
    ]  # an equal share and one operator on top


def test_a_tensor_for_two_readers_is_received_once():
    nodes = (
        PlacementNode(0, 1.0, mem_output=8),
        PlacementNode(1, 1.0, mem_persistent=3),
        PlacementNode(2, 1.0, mem_persistent=3),
    )
    edges = (PlacementEdge(0, 1, 8, 0), PlacementEdge(0, 2, 8, 0))
    found = etf(problem(PlacementGraph(nodes, edges), 2, 14.0))
    assert found.over_bytes == 0.0  # 8 + 3 on one device, 3 + 8 (or both and one copy) on the other
