"""Small graphs for placement tests: Baechi's own examples, and random ones."""

import random

from plait.ir.plan.placement import PlacementEdge, PlacementGraph, PlacementNode

# Times of operators, edges as (from, to, transfer time); the published illustrations of m-ETF and m-SCT.
# fmt: off
FIGURES = {
    "fig1": ((1, 3, 3, 1, 3, 1), ((0, 1, 1), (0, 4, 1), (1, 2, 1), (2, 3, 1), (4, 5, 1), (5, 3, 1))),
    "fig2": ((5, 4, 7, 4), ((0, 2, 1), (1, 2, 3), (1, 3, 1))),
    "fig21": ((9, 9, 8, 5, 6, 4), ((0, 2, 2), (1, 2, 3), (1, 3, 1), (4, 5, 3))),
    "fig3": (
        (6, 7, 9, 8, 10, 6, 6, 10, 6),
        ((0, 2, 1), (0, 3, 5), (0, 4, 2), (1, 2, 1), (1, 3, 1), (1, 4, 1), (2, 5, 5), (2, 6, 3),
         (3, 5, 4), (3, 6, 1), (3, 7, 5), (4, 8, 1)),
    ),
}
# fmt: on

PERSISTENT = {"fig1": (1, 2, 2, 1, 1, 1)}  # on devices of 4


def figure(name: str) -> PlacementGraph:
    times, edges = FIGURES[name]
    persistent = PERSISTENT.get(name, (0,) * len(times))
    return PlacementGraph(
        tuple(PlacementNode(i, float(us), "", persistent[i]) for i, us in enumerate(times)),
        tuple(PlacementEdge(u, w, 0, comm_us=float(us)) for u, w, us in edges),
        name,
    )


def random_graph(seed: int, most: int, least: int = 2) -> PlacementGraph:
    """Whole numbers throughout, so that times and bytes add up exactly."""
    rng = random.Random(seed)
    count = rng.randint(least, most)
    nodes = tuple(
        PlacementNode(
            i, float(rng.randint(1, 9)), "", rng.randint(0, 5), rng.randint(0, 4), rng.randint(0, 3)
        )
        for i in range(count)
    )
    density = rng.uniform(0.2, 0.8)
    made = [rng.randint(0, 6) for _ in range(count)]
    edges = tuple(
        PlacementEdge(u, w, made[u], rng.choice((None, u)))
        for w in range(count)
        for u in range(max(0, w - 4), w)
        if rng.random() < density
    )
    return PlacementGraph(nodes, edges, f"random {seed}")


def layered(count: int, seed: int) -> PlacementGraph:
    """A wide random graph with long transfers."""
    rng = random.Random(seed)
    nodes = tuple(
        PlacementNode(i, rng.lognormvariate(4.6, 1.0), "", rng.randint(0, 10**6), 10**5, 10**4)
        for i in range(count)
    )
    edges = tuple(
        PlacementEdge(u, w, rng.randint(10**4, 10**6), u)
        for w in range(8, count)
        for u in {rng.randrange(max(0, w - 24), w - 7) for _ in range(2)}
    )
    return PlacementGraph(nodes, edges, f"layered {count}")
