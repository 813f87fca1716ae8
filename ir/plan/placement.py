"""Operator placement as data: a graph of priced operators, the devices, and where each one runs.

A `PlacementGraph` is what `placement-graph/1` files hold: times in microseconds, sizes in bytes.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import msgspec

from ..errors import FileError
from ..files.json_files import located, parse

GRAPH_FORMAT = "placement-graph/1"
LinkModel = Literal["parallel", "duplex", "half-duplex"]
MemoryRule = Literal["train", "infer"]
Status = Literal["optimal", "feasible"]


class PlacementNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operator: microseconds on a device of speed 1, and the bytes it needs.

    `mem_persistent` is always there, `mem_output` is what its consumers read, `mem_temporary` is held
    while it runs. Operators of one `colocation` group run on one device. `backward` marks operators
    of the backward pass; `cpu_us` is information only.
    """

    id: int
    compute_us: float
    name: str = ""
    mem_persistent: float = 0
    mem_output: float = 0
    mem_temporary: float = 0
    colocation: int | str | None = None
    backward: bool | None = None
    cpu_us: float | None = None

    def __post_init__(self) -> None:
        for field in ("compute_us", "mem_persistent", "mem_output", "mem_temporary"):
            _amount(getattr(self, field), field)


class PlacementEdge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`dst` reads `bytes` that `src` makes; edges with one `src` and `tensor` are one tensor, sent
    once to each device. `comm_us` is the time of a transfer where the link's formula is not it."""

    src: int
    dst: int
    bytes: float
    tensor: int | str | None = None
    comm_us: float | None = None

    def __post_init__(self) -> None:
        _amount(self.bytes, "bytes")
        _amount(self.comm_us or 0.0, "comm_us")


class PlacementGraph(msgspec.Struct, frozen=True):
    """A directed acyclic graph of operators; edges of one operator are sent in their order here."""

    nodes: tuple[PlacementNode, ...]
    edges: tuple[PlacementEdge, ...]
    name: str = "graph"
    source: str = ""


class PlacementDevice(msgspec.Struct, frozen=True):
    """A device: bytes that operators may use, and its speed relative to the graph's times."""

    memory_bytes: float
    speed: float = 1.0

    def __post_init__(self) -> None:
        _amount(self.memory_bytes, "memory_bytes")
        if not 0 < self.speed < 1e9:
            raise ValueError(f"speed: {self.speed!r:.40} is not a sensible value")


class PlacementLink(msgspec.Struct, frozen=True):
    """A link: `alpha_us + beta_us_per_byte * bytes` microseconds a transfer."""

    alpha_us: float
    beta_us_per_byte: float

    def __post_init__(self) -> None:
        _amount(self.alpha_us, "alpha_us")
        _amount(self.beta_us_per_byte, "beta_us_per_byte")


class PlacementTarget(msgspec.Struct, frozen=True):
    """Devices, numbered from 0, and the link of every ordered pair: `links[from][to]`, or one link
    for all pairs (`links` holds one row of one)."""

    devices: tuple[PlacementDevice, ...]
    links: tuple[tuple[PlacementLink, ...], ...]

    def __post_init__(self) -> None:
        count = len(self.devices)
        rows = {len(row) for row in self.links}
        if not count or (len(self.links), rows) not in ((1, {1}), (count, {count})):
            raise ValueError("links: one link for all pairs, or one row of links per device")

    def link(self, source: int, target: int) -> PlacementLink:
        return self.links[0][0] if len(self.links) == 1 else self.links[source][target]


def uniform_target(
    count: int, memory_bytes: float, alpha_us: float, beta: float
) -> PlacementTarget:
    """`count` equal devices; a transfer of `b` bytes takes `alpha_us + beta * b` microseconds."""
    devices = (PlacementDevice(memory_bytes),) * count
    return PlacementTarget(devices, ((PlacementLink(alpha_us, beta),),))


class Placement(msgspec.Struct, frozen=True):
    """Where every operator runs, by its id, and the order in which devices start them.

    `makespan_us` and `peak_memory` (bytes, per device) follow from the simulation of `order` under
    `link` and `memory_rule`; no placement is faster than `lower_bound_us`, so the true gap is at most
    `gap`. `algorithm` found it. The graph and the devices are part of the value. If the graph is a
    model's step, `model_digest` is the model's fingerprint and `global_batch` its samples.
    """

    device: dict[str, int]
    order: tuple[int, ...]
    makespan_us: float
    lower_bound_us: float
    gap: float
    status: Status
    peak_memory: tuple[float, ...]
    algorithm: str
    link: LinkModel
    memory_rule: MemoryRule
    target: PlacementTarget
    graph: PlacementGraph
    model_digest: str = ""
    global_batch: int = 0


def load_graph(data: bytes) -> PlacementGraph:
    """Read a `placement-graph/1` file; raises FileError with the JSON path of what is wrong."""
    body = parse(data)
    if not isinstance(body, dict):
        raise FileError("$: not an object")
    format_: object = cast("dict[str, object]", body).get("format")
    if format_ != GRAPH_FORMAT:
        raise FileError(f"$.format: {format_!r:.60} where {GRAPH_FORMAT!r} is expected")
    try:
        graph = msgspec.convert(body, PlacementGraph, strict=True)
    except msgspec.ValidationError as error:
        raise FileError(located(str(error))) from None
    check_graph(graph)
    return graph


def check_graph(graph: PlacementGraph) -> None:
    """Ids are distinct, edges join known operators, nothing depends on itself; else FileError."""
    place: dict[int, int] = {}
    for number, node in enumerate(graph.nodes):
        if place.setdefault(node.id, number) != number:
            raise FileError(f"$.nodes[{number}].id: {node.id} stands twice")
    if not place:
        raise FileError("$.nodes: at least one operator is needed")
    for number, edge in enumerate(graph.edges):
        for end in ("src", "dst"):
            if getattr(edge, end) not in place:
                raise FileError(
                    f"$.edges[{number}].{end}: {getattr(edge, end)} is no operator's id"
                )
    _check_acyclic(graph)


def _check_acyclic(graph: PlacementGraph) -> None:
    left = {node.id: 0 for node in graph.nodes}
    after: dict[int, list[int]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        left[edge.dst] += 1
        after[edge.src].append(edge.dst)
    ready = [node for node, count in left.items() if not count]
    for node in ready:
        for target in after[node]:
            left[target] -= 1
            if not left[target]:
                ready.append(target)
    if len(ready) < len(left):
        stuck = next(n for n, edge in enumerate(graph.edges) if left[edge.src] and left[edge.dst])
        raise FileError(f"$.edges[{stuck}]: operators depend on each other in a circle")


def _amount(value: float, what: str) -> None:
    if not (0 <= value < 1e18 and math.isfinite(value)):
        raise ValueError(f"{what}: {value!r:.40} is not a sensible value")


def check_placement(placement: Placement) -> None:
    """Every operator is on a device that exists and stands once in the order; else FileError."""
    check_graph(placement.graph)
    ids = {node.id for node in placement.graph.nodes}
    if placement.device.keys() != {str(i) for i in ids}:
        raise FileError("$.device: does not name every operator of the graph and no other")
    if len(placement.peak_memory) != len(placement.target.devices):
        raise FileError("$.peak_memory: not one amount for every device")
    for operator, device in placement.device.items():
        if not 0 <= device < len(placement.target.devices):
            raise FileError(f"$.device.{operator}: there is no device {device}")
    if len(placement.order) != len(ids) or set(placement.order) != ids:
        raise FileError("$.order: does not name every operator once")
