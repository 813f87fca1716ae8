"""Regions of a mixed cluster: parts that are near each other, by the links between them.

A pipeline stays inside a region, so that only sums of gradients go over the slow links. Which
regions are the best follows from the model, so several partitions are tried: the components that
fast links alone leave, and normalised cuts of the graph of links and of its neighbourhoods.

    4 parts, links of 12 GB/s and 0.2 GB/s      partitions
        0 ━━ 2                                  0 1 2 3  |  0 2 / 1 3  |  0 / 1 / 2 / 3
        ┊    ┊
        1 ━━ 3

Normalised cuts: Shi and Malik, "Normalized Cuts and Image Segmentation"; of hypergraphs: Zhou, Huang
and Schölkopf, "Learning with Hypergraphs".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, islice, pairwise, permutations
from typing import TypeAlias

import networkx as nx
import numpy as np

from ...ir.devices.cluster import Cluster

Region = tuple[int, ...]  # numbers of parts, ascending
Partition = tuple[Region, ...]
Links: TypeAlias = "nx.Graph[int]"  # parts and what joins them, by weight
NEAR = 0.5  # of a part's fastest link: parts behind faster ones are its neighbours
MOST_PATHS = 720  # of the parts of a region that are compared


def partitions(cluster: Cluster) -> list[Partition]:
    """Partitions of the parts into regions, coarse ones first."""
    graph = link_graph(cluster)
    tried = chain(_components(graph), _bisections(graph), _bisections(neighbourhood_graph(graph)))
    return sorted(dict.fromkeys(tried), key=len)


def link_graph(cluster: Cluster) -> Links:
    """The parts; edges weigh the bandwidth of their links, in bytes per second."""
    graph: Links = nx.Graph()
    graph.add_nodes_from(range(max(1, len(cluster.parts))))
    for one, other in combinations(graph.nodes, 2):
        link = cluster.link_of_parts(one, other)
        graph.add_edge(one, other, weight=link.bandwidth_bytes_per_second)
    return graph


def neighbourhood_graph(graph: Links) -> Links:
    """The hypergraph of every part with the parts near it, as a graph: two parts weigh, for each
    hyperedge with both, its bandwidth over its size."""
    expanded: Links = nx.Graph()
    expanded.add_nodes_from(graph.nodes)
    for part, near in graph.adjacency():
        fastest = max((edge["weight"] for edge in near.values()), default=0.0)
        members = [part, *(n for n, edge in near.items() if edge["weight"] >= NEAR * fastest)]
        for one, other in combinations(sorted(members), 2):
            before = expanded.get_edge_data(one, other, {"weight": 0.0})["weight"]
            expanded.add_edge(one, other, weight=before + fastest / len(members))
    return expanded


def paths(graph: Links, parts: Sequence[int]) -> list[tuple[int, ...]]:
    """Orders of parts in a pipeline, those with the fastest links between neighbours first."""

    def seconds_per_byte(path: tuple[int, ...]) -> float:
        return sum(1 / graph.edges[pair]["weight"] for pair in pairwise(path))

    return sorted(islice(permutations(parts), MOST_PATHS), key=seconds_per_byte)


def _components(graph: Links) -> Iterator[Partition]:
    """What links at least as fast as a limit join, for every limit; every part on its own."""
    weights: dict[tuple[int, int], float] = {
        pair: graph.edges[pair]["weight"] for pair in graph.edges
    }
    for limit in sorted(set(weights.values())):
        joined: Links = nx.Graph([pair for pair, weight in weights.items() if weight >= limit])
        joined.add_nodes_from(graph.nodes)
        yield _partition(nx.connected_components(joined))
    yield _partition({node} for node in graph.nodes)


def _bisections(graph: Links) -> Iterator[Partition]:
    """The largest region cut in two, again and again."""
    regions = [set(graph.nodes)]
    while len(largest := max(regions, key=len)) > 1:
        regions.remove(largest)
        regions += _halves(graph.subgraph(largest))
        yield _partition(regions)


def _halves(graph: Links) -> tuple[set[int], set[int]]:
    """The parts of a graph in two: the least normalised cut along its second eigenvector."""
    first, *others = nx.connected_components(graph)
    if others:
        return first, set[int]().union(*others)
    nodes = sorted(graph.nodes)
    weights = nx.to_numpy_array(graph, nodes)
    scale = 1 / np.sqrt(weights.sum(axis=0))
    _, vectors = np.linalg.eigh(np.eye(len(nodes)) - scale[:, None] * weights * scale)
    order = sorted(range(len(nodes)), key=lambda i: (round(vectors[i, 1] * scale[i], 12), i))

    def normalised(side: set[int]) -> float:
        return float(nx.normalized_cut_size(graph, side, weight="weight"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    side = min(({nodes[i] for i in order[:n]} for n in range(1, len(nodes))), key=normalised)
    return side, set(nodes) - side


def _partition(regions: Iterable[set[int]]) -> Partition:
    return tuple(sorted(tuple(sorted(region)) for region in regions))
