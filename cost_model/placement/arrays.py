"""A placement graph on devices as flat arrays, and the peak bytes of a placement.

Operators are numbered in topological order (smallest id first), edges by their source, in the order
of the file. Microseconds and bytes, as in `ir.placement`.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ir.plan.placement import PlacementEdge, PlacementGraph, PlacementTarget
from ..compiled import compiled, inner

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# numba compiles record arrays by their dtype; type checkers know no fields of them
Records = Any
Record = Any
LINK_FORMULA = -1.0  # in `fixed_us`: the link's alpha-beta formula gives the time

# Edges made by an operator are `first` to `after`; the edges it reads are `reads[read:read_after]`.
# Operators of one `unit` must share a device.
OPERATOR = np.dtype(
    [
        ("id", np.int64),
        ("unit", np.int64),
        ("first", np.int64),
        ("after", np.int64),
        ("read", np.int64),
        ("read_after", np.int64),
        ("persistent", np.float64),
        ("output", np.float64),
        ("temporary", np.float64),
        ("compute_us", np.float64),
    ]
)
EDGE = np.dtype(
    [
        ("source", np.int64),
        ("target", np.int64),
        ("tensor", np.int64),
        ("bytes", np.float64),
        ("fixed_us", np.float64),
    ]
)


class GraphArrays(NamedTuple):
    """`n` operators, `m` edges and `t` tensors on `k` devices."""

    operators: Records  # n
    edges: Records  # m
    reads: Ints  # m
    duration_us: Floats  # n, k
    links: Floats  # 2, k, k: alpha in us, beta in us per byte
    capacity: Floats  # k
    tensors: int  # t


def graph_arrays(graph: PlacementGraph, target: PlacementTarget) -> GraphArrays:
    """The arrays of a graph on devices."""
    nodes = [graph.nodes[i] for i in topological(graph)]
    number = {node.id: i for i, node in enumerate(nodes)}
    sources = [number[e.src] for e in graph.edges]
    order = sorted(range(len(sources)), key=sources.__getitem__)  # stable: keeps the file's order
    by_source = [graph.edges[i] for i in order]
    tensors = _tensors(by_source)
    edges = np.array(
        [
            (
                number[e.src],
                number[e.dst],
                tensors[i],
                e.bytes,
                LINK_FORMULA if e.comm_us is None else e.comm_us,
            )
            for i, e in enumerate(by_source)
        ],
        EDGE,
    )
    groups: dict[object, int] = {}
    operators = np.array(
        [
            (
                node.id,
                groups.setdefault(_group(node.id, node.colocation), len(groups)),
                0,
                0,
                0,
                0,
                node.mem_persistent,
                node.mem_output,
                node.mem_temporary,
                node.compute_us,
            )
            for node in nodes
        ],
        OPERATOR,
    )
    _number_edges(operators, edges)
    speeds = np.array([d.speed for d in target.devices])
    return GraphArrays(
        operators,
        edges,
        np.argsort(edges["target"], kind="stable").astype(np.int64),
        operators["compute_us"][:, None] / speeds[None, :],
        _links(target),
        np.array([d.memory_bytes for d in target.devices], np.float64),
        max(tensors, default=-1) + 1,
    )


def topological(graph: PlacementGraph) -> list[int]:
    """Positions of the operators in topological order, the smallest ready id first."""
    place = {node.id: i for i, node in enumerate(graph.nodes)}
    missing = [0] * len(place)
    after: list[list[int]] = [[] for _ in place]
    for edge in graph.edges:
        missing[place[edge.dst]] += 1
        after[place[edge.src]].append(place[edge.dst])
    ready = [(node.id, i) for i, node in enumerate(graph.nodes) if not missing[i]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        number = heapq.heappop(ready)[1]
        order.append(number)
        for target in after[number]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, (graph.nodes[target].id, target))
    return order


def _group(operator: int, colocation: int | str | None) -> object:
    return ("alone", operator) if colocation is None else ("group", colocation)


def _tensors(edges: list[PlacementEdge]) -> list[int]:
    known: dict[object, int] = {}
    return [
        known.setdefault(i if e.tensor is None else (e.src, e.tensor), len(known))
        for i, e in enumerate(edges)
    ]


def _number_edges(operators: Records, edges: Records) -> None:
    places = np.arange(len(operators))
    operators["first"] = np.searchsorted(edges["source"], places)
    operators["after"] = np.searchsorted(edges["source"], places, side="right")
    targets = np.sort(edges["target"])
    operators["read"] = np.searchsorted(targets, places)
    operators["read_after"] = np.searchsorted(targets, places, side="right")


def _links(target: PlacementTarget) -> Floats:
    count = range(len(target.devices))
    rows = [[target.link(i, j) for j in count] for i in count]
    return np.array(
        [
            [[link.alpha_us for link in row] for row in rows],
            [[link.beta_us_per_byte for link in row] for row in rows],
        ]
    )


@inner
def transfer_us(edge: Record, links: Floats, sender: int, receiver: int) -> float:
    """Microseconds of one transfer: fixed by the file, zero for no bytes, else alpha + beta *
    bytes."""
    if edge.fixed_us >= 0.0:
        return edge.fixed_us
    if edge.bytes <= 0.0:
        return 0.0
    return links[0, sender, receiver] + links[1, sender, receiver] * edge.bytes


class MemoryCount(NamedTuple):
    """Bytes per device, and what is noted on the way to them."""

    used: Floats  # k: bytes
    largest: Floats  # k: largest temporary
    received: Floats  # t, k: bytes of a copy, negative where there is none
    last: Floats  # t, k: when the last reader of a copy ends
    last_use: Floats  # n: of an output on its own device
    when: Floats  # 4 n + 2 t: microseconds of changes
    change: Floats  # 4 n + 2 t: bytes
    order: Ints  # 4 n + 2 t: changes by time


def new_count(work: GraphArrays) -> MemoryCount:
    """Room to count the bytes of one placement at a time."""
    (n, k), t = work.duration_us.shape, work.tensors
    used, largest = np.zeros((2, k))
    received, last = np.zeros((2, t, k))
    when, change = np.zeros((2, 4 * n + 2 * t))
    order = np.zeros(4 * n + 2 * t, np.int64)
    return MemoryCount(used, largest, received, last, np.zeros(n), when, change, order)


@compiled
def resident_bytes(work: GraphArrays, device: Ints, memory: MemoryCount) -> None:
    """Peak bytes per device under the `train` rule: outputs and received copies stay to the end,
    and the largest temporary comes on top. Fills `memory.used`."""
    operators, edges = work.operators, work.edges
    used, largest, received = memory.used, memory.largest, memory.received
    for d in range(len(used)):
        used[d] = largest[d] = 0.0
        for t in range(len(received)):
            received[t, d] = -1.0
    for v in range(len(operators)):
        d = device[v]
        used[d] += operators[v].persistent + operators[v].output
        largest[d] = max(largest[d], operators[v].temporary)
    for e in range(len(edges)):
        d = device[edges[e].target]
        if d != device[edges[e].source] and received[edges[e].tensor, d] < 0.0:
            received[edges[e].tensor, d] = edges[e].bytes
            used[d] += edges[e].bytes
    for d in range(len(used)):
        used[d] += largest[d]


@compiled
def lifetime_bytes(
    work: GraphArrays, device: Ints, times: Records, slots: Records, memory: MemoryCount
) -> None:
    """Peak bytes per device under the `infer` rule: outputs and received copies live until their
    last use. Fills `memory.used`.

    `times` (n) and `slots` (t, k) are those of a finished simulation.
    """
    operators, edges = work.operators, work.edges
    used, _, received, last, last_use, when, change, order = memory
    for i in range(len(slots)):
        for d in range(len(used)):
            received[i, d] = last[i, d] = 0.0
    for v in range(len(operators)):
        last_use[v] = times[v].end
    for e in range(len(edges)):
        u, w, tensor = edges[e].source, edges[e].target, edges[e].tensor
        d = device[w]
        if d == device[u]:
            last_use[u] = max(last_use[u], times[w].end)
            continue
        if last[tensor, d] == 0.0:
            received[tensor, d] = edges[e].bytes
        last[tensor, d] = max(last[tensor, d], times[w].end)
        last_use[u] = max(last_use[u], slots[tensor, d].arrive)
    for d in range(len(used)):
        level, count = 0.0, 0
        for v in range(len(operators)):
            if device[v] == d:
                level += operators[v].persistent
                count = _span(when, change, count, times[v].start, last_use[v], operators[v].output)
                temporary = operators[v].temporary
                count = _span(when, change, count, times[v].start, times[v].end, temporary)
        for i in range(len(slots)):
            count = _span(when, change, count, slots[i, d].send, last[i, d], received[i, d])
        used[d] = _highest(when, change, order, count, level)


@inner
def _span(when: Floats, change: Floats, count: int, begin: float, end: float, size: float) -> int:
    """Append a live interval as two changes; returns the new number of changes."""
    if size <= 0.0:
        return count
    when[count], change[count] = begin, size
    when[count + 1], change[count + 1] = end, -size
    return count + 2


@inner
def _highest(when: Floats, change: Floats, order: Ints, count: int, level: float) -> float:
    """The highest level; of changes at one instant, frees come before allocations."""
    sort_by(when, order, count)
    high = level
    for i in range(count):
        at: int = order[i]
        level += float(change[at])
        if i + 1 == count or when[order[i + 1]] > when[at]:
            high = max(high, level)
    return high


@inner
def sort_by(values: Floats, order: Ints, count: int) -> None:
    """Fill `order[:count]` with the numbers below `count` by ascending value, the smaller first of
    equal ones: a heap sort, since numba takes a second to compile that of numpy."""
    for i in range(count):
        order[i] = i
    for top in range(count // 2 - 1, -1, -1):
        _sift(values, order, top, count)
    for end in range(count - 1, 0, -1):
        order[0], order[end] = order[end], order[0]
        _sift(values, order, 0, end)


@inner
def _sift(values: Floats, order: Ints, at: int, end: int) -> None:
    """Restore the heap, the largest on top, below a place of `order[:end]`."""
    moved, low = order[at], 2 * at + 1
    while low < end:
        if low + 1 < end and sorts_before(values, order[low], order[low + 1]):
            low += 1
        if not sorts_before(values, moved, order[low]):
            break
        order[at] = order[low]
        at, low = low, 2 * low + 1
    order[at] = moved


@inner
def sorts_before(values: Floats, i: int, j: int) -> bool:
    return values[i] < values[j] or (values[i] == values[j] and i < j)
