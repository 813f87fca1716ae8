"""The graph of a placement by the modules that its operators come from, which open.

   query.layers ┐
                ├ middle ── exit        a box is a module with its forward, backward and update;
document.layers ┘                       edges are data of forward, as the module was written

   opens to     layers.0 ── layers.1 ── ...        at last to operators: forward, backward, update
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from typing import NamedTuple

from ...cost_model.placement.trace import OperatorRun, PlacementTrace
from ...ir.plan.placement import Placement, PlacementNode
from ...ir.text.units import seconds
from .call_names import ranges
from .layout import arrange
from .report import Box, BoxGraph, Edge

OPERATOR = re.compile(r"\.?(aten|plait|comm)\.[\w.]+$")
MORE = ": "  # between a parameter and what is done with it
UPDATE = MORE + "update"
PHASES = ("forward", "backward", "update")
MOST_BOXES = 18  # of one level: modules below would be more
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


def module_of(node: PlacementNode, modules: Container[str] = ()) -> tuple[str, ...]:
    """`("layers", "0", "mlp")` of `layers.0.mlp.aten.mm.default`; a parameter's is its owner's.

    Calls between modules (`entry.layers.0.mlp`) stand in front of one of the top `modules`.
    """
    name, more, _ = node.name.partition(MORE)
    path = OPERATOR.sub("", name)
    parts = tuple(part for part in path.split(".") if part)
    if more or path == name:
        return parts[:-1]
    inside = len(parts) > 1 and parts[0] not in modules and parts[1] in modules
    return parts[1:] if inside else parts


def phase_of(node: PlacementNode) -> str:
    if node.name.endswith(UPDATE):
        return "update"
    return "backward" if node.backward or MORE in node.name else "forward"


def module_graphs(
    placement: Placement, trace: PlacementTrace, boxes: dict[int, Box]
) -> dict[str, BoxGraph]:
    """Graphs by key, `""` at the top; `boxes` are the operators'."""
    nodes = {node.id: node for node in placement.graph.nodes}
    modules = {n.name.split(".")[0] for n in nodes.values() if not OPERATOR.search(n.name)}
    placed = [
        Placed(
            module_of(nodes[r.operator], modules), phase_of(nodes[r.operator]), boxes[r.operator], r
        )
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
        """A graph of modules one level deeper, of phases, or of operators."""
        deeper = self.depth_below(placed, depth)
        phases = {p.phase for p in placed}
        if len(placed) <= FEW_OPERATORS or (deeper == depth and len(phases) == 1):
            self.graphs[key] = self.joined([(p.box, [p]) for p in placed], placed)
            return
        groups: dict[tuple[str, ...], list[Placed]] = defaultdict(list)
        for p in placed:
            groups[(p.phase,) if deeper == depth else p.module[:deeper]].append(p)
        members: list[tuple[Box, list[Placed]]] = []
        for number, (name, group) in enumerate(sorted(groups.items(), key=_middle)):
            inside = f"{key}/{number}"
            if len(group) > 1:
                self.level(group, inside, deeper)
            members.append((module_box(name, group, inside), group))
        drawn = placed if deeper == depth else _written(placed)
        self.graphs[key] = self.joined(members, drawn)

    def depth_below(self, placed: Sequence[Placed], depth: int) -> int:
        """The deepest level whose modules can be drawn at once."""
        deepest, most = depth, max(len(p.module) for p in placed)
        for level in range(depth + 1, most + 1):
            groups = {p.module[:level] for p in placed}
            if len(groups) > MOST_BOXES and deepest > depth:
                break
            if len(groups) > 1:
                deepest = level
            if len(groups) > MOST_BOXES / 2:
                break
        return deepest

    def joined(
        self, members: Sequence[tuple[Box, list[Placed]]], drawn: Sequence[Placed]
    ) -> BoxGraph:
        """Boxes in the order they run in, with the data between operators of `drawn` that goes on to
        later ones."""
        owner = {p.run.operator: i for i, (_, group) in enumerate(members) for p in group}
        operators = {p.run.operator for p in drawn}
        pairs = {
            (owner[a], owner[b])
            for a, b in self.edges
            if a in operators and b in operators and owner[a] < owner[b]
        }
        return arrange((box for box, _ in members), [Edge(*pair) for pair in sorted(pairs)])


def _written(placed: Sequence[Placed]) -> list[Placed]:
    """Operators of forward: those of backward go the same ways back."""
    return [p for p in placed if p.phase == "forward"] or list(placed)


def _middle(item: tuple[tuple[str, ...], list[Placed]]) -> float:
    """Where the forward of a group lies in time; what takes none, as parameters do, says little."""
    runs = [(p.run.start_us, p.run.end_us - p.run.start_us + 1e-9) for p in _written(item[1])]
    return sum(start * weight for start, weight in runs) / sum(weight for _, weight in runs)


def module_box(module: tuple[str, ...], group: Sequence[Placed], inside: str) -> Box:
    """A module, or a phase of one; its device is the one that runs most of it."""
    busy: dict[int, float] = defaultdict(float)
    for p in group:
        busy[p.run.device] += 1e-9 + p.run.end_us - p.run.start_us
    name = ".".join(module) or "top level"
    return Box(
        label=name,
        kind="module",
        about=_counted(group),
        stage=max(busy, key=lambda d: (busy[d], -d)),
        forward_seconds=sum(p.box.forward_seconds for p in group),
        backward_seconds=sum(p.box.backward_seconds for p in group),
        facts=(
            ("module", name),
            *(
                (phase, _counted([p for p in group if p.phase == phase]))
                for phase in sorted({p.phase for p in group}, key=PHASES.index)
            ),
            *((f"device {d}", f"busy {seconds(busy[d] * 1e-6)}") for d in sorted(busy)),
        ),
        inside=inside if len(group) > 1 else "",
    )


def _counted(group: Sequence[Placed]) -> str:
    """`62 operators on devices 0–3`."""
    devices = sorted({p.run.device for p in group})
    where = ("device " if len(devices) == 1 else "devices ") + ranges(devices)
    return f"{len(group)} operator{'s' if len(group) > 1 else ''} on {where}"
