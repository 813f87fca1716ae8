"""A report's graphs as the JSON that Model Explorer reads: a collection, one graph a level."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from ....ir.text.units import seconds
from ..report import Box, BoxGraph, Edge, Report


def model_explorer(report: Report) -> str:
    """Boxes that open name their graphs as subgraphs; facts become attributes."""
    names = {key: key or "model" for key in report.graphs}
    graphs = [graph_json(names[key], graph, names) for key, graph in report.graphs.items()]
    return json.dumps([{"label": report.title, "graphs": graphs}], separators=(",", ":"))


def graph_json(name: str, graph: BoxGraph, names: dict[str, str]) -> dict[str, Any]:
    sources: dict[int, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        sources[edge.target].append(edge)
    nodes: list[dict[str, Any]] = []
    for number, box in enumerate(graph.boxes):
        node: dict[str, Any] = {
            "id": str(number),
            "label": box.label,
            "namespace": namespace(box),
            "attrs": [{"key": key, "value": value} for key, value in attributes(box)],
            "incomingEdges": [
                {
                    "sourceNodeId": str(edge.source),
                    "sourceNodeOutputId": "0",
                    "targetNodeInputId": str(i),
                }
                for i, edge in enumerate(sources[number])
            ],
        }
        if box.inside in names and box.inside:
            node["subgraphIds"] = [names[box.inside]]
        nodes.append(node)
    return {"id": name, "nodes": nodes}


def namespace(box: Box) -> str:
    """Boxes of one stage stand together."""
    return f"stage {box.stage}" if box.stage >= 0 else ""


def attributes(box: Box) -> list[tuple[str, str]]:
    pairs = [("kind", box.kind), ("about", box.about), ("strategy", box.strategy)]
    if box.times > 1:
        pairs.append(("equal calls", str(box.times)))
    times = (("forward", box.forward_seconds), ("backward", box.backward_seconds))
    pairs += [(name, seconds(value)) for name, value in times if value]
    return [(key, value) for key, value in (*pairs, *box.facts) if value]
