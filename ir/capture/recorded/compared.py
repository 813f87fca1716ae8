"""Whether two recordings of a step compute the same, and where they come together again."""

from __future__ import annotations

from ..export import Recording
from ..passes.constants import UnsupportedNode
from ..passes.functionalize import flat_graph
from ..values.explore import Meeting, OtherSide
from .folding import folded
from .joins import Apart, joined


def same_but_for_constants(one: Recording, other: Recording) -> bool:
    """Whether two recordings compute the same of parameters, inputs and random numbers."""
    try:
        return folded(flat_graph(one)) == folded(flat_graph(other))
    except UnsupportedNode:
        return False


def meeting(recording: Recording, side: OtherSide) -> Meeting:
    """How a recording and one with the other side of a branch go on."""
    try:
        graphs = flat_graph(recording), flat_graph(side.recording)
        join = joined(*graphs, side.branch.number, side.branch.side)
        return "selected" if join.values or join.written else "neutral"
    except (Apart, UnsupportedNode):
        return "apart"
