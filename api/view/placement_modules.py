"""The graph of a placement by the modules that its operators come from, which open.

query.layers ── middle ── exit ── exit, backward ── query.layers, backward ── query.layers, update
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ...cost_model.placement.trace import OperatorRun, PlacementTrace
from ...ir.plan.placement import Placement, PlacementNode
from .call_names import ranges
from .layout import arrange
from .report import Box, BoxGraph, Edge

OPERATOR = re.compile(r"\.?(aten|plait|comm)\.[\w.]+$")
UPDATE = ": update"
MOST_BOXES = 40  # of one level: modules below would be more
FEW_OPERATORS = 24  # a module of so many opens to its operators


class Placed(NamedTuple):
    """An operator: where it stands in the module tree, when and where it runs."""

    module: tuple[str, ...]
    phase: str
    box: Box
    run: OperatorRun


def has_modules(placement: Placement) -> bool:
    """Whether most operators say which module they come from."""
    nodes = placement.graph.nodes
    return sum(bool(module_of(node)) for node in nodes) > len(nodes) / 2


def module_of(node: PlacementNode) -> tuple[str, ...]:
    """`("layers", "0", "mlp")` of `layers.0.mlp.aten.mm.default`; a parameter's is its owner's."""
    name = node.name.removesuffix(UPDATE)
    path = OPERATOR.sub("", name)
    parts = tuple(part for part in path.split(".") if part)
    return parts if path != name else parts[:-1]


def phase_of(node: PlacementNode) -> str:
    if node.name.endswith(UPDATE):
        return "update"
    return "backward" if node.backward else "forward"


def module_graphs(
    placement: Placement, trace: PlacementTrace, boxes: dict[int, Box]
) -> dict[str, BoxGraph]:
    """Graphs by key, `""` at the top; `boxes` are the operators'."""
    nodes = {node.id: node for node in placement.graph.nodes}
    placed = [
        Placed(module_of(nodes[r.operator]), phase_of(nodes[r.operator]), boxes[r.operator], r)
        for r in trace.runs
    ]
    graphs: dict[str, BoxGraph] = {}
    _Levels(placement, graphs).level(placed, "", 0)
    return graphs


class _Levels:
    def __init__(self, placement: Placement, graphs: dict[str, BoxGraph]) -> None:
        self.edges = [(e.src, e.dst) for e in placement.graph.edges]
        self.graphs = graphs

    def level(self, placed: Sequence[Placed], key: str, depth: int) -> None:
        """A graph of modules one level deeper, or of operators."""
        deeper = self.depth_below(placed, depth)
        if len(placed) <= FEW_OPERATORS or deeper == depth:
            self.graphs[key] = self.joined([(p.box, [p]) for p in placed])
            return
        groups: dict[tuple[tuple[str, ...], str], list[Placed]] = defaultdict(list)
        for p in placed:
            groups[p.module[:deeper], p.phase].append(p)
        ordered = sorted(groups.items(), key=lambda item: _middle(item[1]))
        members: list[tuple[Box, list[Placed]]] = []
        for number, ((module, phase), group) in enumerate(ordered):
            inside = f"{key}/{number}"
            if len(group) > 1:
                self.level(group, inside, deeper)
            members.append((module_box(module, phase, group, inside), group))
        self.graphs[key] = self.joined(members)

    def depth_below(self, placed: Sequence[Placed], depth: int) -> int:
        """The deepest level whose modules can be drawn at once."""
        deepest, most = depth, max(len(p.module) for p in placed)
        for level in range(depth + 1, most + 1):
            groups = {(p.module[:level], p.phase) for p in placed}
            if len(groups) > MOST_BOXES and deepest > depth:
                break
            if len(groups) > 1:
                deepest = level
            if len(groups) > MOST_BOXES / 2:
                break
        return deepest

    def joined(self, members: Sequence[tuple[Box, list[Placed]]]) -> BoxGraph:
        """Boxes in the order they run in, with the data that goes on to later ones."""
        owner = {p.run.operator: i for i, (_, group) in enumerate(members) for p in group}
        pairs = {
            (owner[a], owner[b])
            for a, b in self.edges
            if a in owner and b in owner and owner[a] < owner[b]
        }
        return arrange((box for box, _ in members), [Edge(*pair) for pair in sorted(pairs)])


def _middle(group: Sequence[Placed]) -> float:
    return sum(p.run.start_us for p in group) / len(group)


def module_box(module: tuple[str, ...], phase: str, group: Sequence[Placed], inside: str) -> Box:
    """A module in one phase; its device is the one that runs most of it."""
    busy: dict[int, float] = defaultdict(float)
    for p in group:
        busy[p.run.device] += 1e-9 + p.run.end_us - p.run.start_us
    devices = sorted(busy)
    where = ("device " if len(devices) == 1 else "devices ") + ranges(devices)
    name = ".".join(module) or "top level"
    return Box(
        label=name if phase == "forward" else f"{name}, {phase}",
        kind="module",
        about=f"{len(group)} operator{'s' if len(group) > 1 else ''} on {where}",
        stage=max(devices, key=lambda d: (busy[d], -d)),
        forward_seconds=sum(p.box.forward_seconds for p in group),
        backward_seconds=sum(p.box.backward_seconds for p in group),
        facts=(("module", name), ("phase", phase), ("runs on", where)),
        inside=inside if len(group) > 1 else "",
    )
