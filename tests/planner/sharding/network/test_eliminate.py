"""Elimination of networks with more nodes around one than an array has dimensions."""

import numpy as np

from plait.planner.sharding.network.eliminate import eliminate
from plait.planner.sharding.network.network import Endpoint, Network, ReshardEdge

CONSUMERS = 80


def test_nodes_without_a_choice_need_no_dimension() -> None:
    two, one = np.array([0, 1]), np.array([1])
    seconds = np.array([[0.0, 5.0], [3.0, 0.0]])
    edge = ReshardEdge(
        seconds, Endpoint(0, two), tuple(Endpoint(1 + n, one) for n in range(CONSUMERS))
    )
    costs = (np.array([1.0, 4.0]), *(np.zeros(1) for _ in range(CONSUMERS)))
    network = Network(costs, costs, (), (edge,), float("inf"))
    assignment = eliminate(network, 1 << 20)
    assert assignment == [1, *[0] * CONSUMERS]
    assert network.cost_seconds(assignment) == 4.0
