"""Backward hooks of modules that reach over several layers: taken apart where they can be.

A hook that looks at the gradients of a module's inputs alone is moved to those inputs. One that also
needs those of the outputs must stay within one function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...analysis.liveness import needed_ops
from ...errors import TraceError
from ...model.model import Op
from ..backward.replay import references
from ..graph import FlatGraph, replace
from ..operators.user_backward import TANGENT, USER_BACKWARD


def settle_pairs(graph: FlatGraph) -> None:
    """Move every hook that needs the gradients of inputs alone to those inputs."""
    numbers = {op.args[5] for op in graph.ops if op.target == USER_BACKWARD and op.args[5] != -1}
    for number in numbers:
        members = [
            i
            for i, op in enumerate(graph.ops)
            if op.target == USER_BACKWARD and op.args[5] == number
        ]
        if len(members) == 2:
            _settle(graph, *members)


def _settle(graph: FlatGraph, first: int, last: int) -> None:
    opening, closing = graph.ops[first], graph.ops[last]
    between = graph.ops[first + 1 : last]
    paired = closing.args[6]
    moved = needed_ops(between, set(references(paired)))
    if any(op.target == TANGENT for op in moved) or not _on_tangents(moved, opening):
        return
    rest = [op for op in between if op not in moved]
    gradients = replace(opening, args=(*opening.args[:3], paired, opening.args[4], -1, ()))
    alone = replace(closing, args=(*closing.args[:5], -1, ()))
    graph.ops[first : last + 1] = [*moved, gradients, *rest, alone]


def _on_tangents(ops: Sequence[Op], opening: Op) -> bool:
    """Whether operators belong to a hook: each depends on the gradients of the inputs, or on nothing
    that the module computes."""
    known = set(references(opening.args[2]))
    for op in ops:
        if op.operands() and known.isdisjoint(op.operands()):
            return False
        known.update(op.results)
    return True


def refuse_torn(segments: Sequence[Any], pairs: Sequence[str]) -> None:
    """Raises TraceError where a backward of the user's own lies in more than one function."""
    waiting: dict[int, int] = {}
    for number, segment in enumerate(segments):
        for op in segment.ops:
            used = {waiting[v] for v in op.operands() if v in waiting}
            if used - {number}:
                raise TraceError(_torn(op, pairs))
            if op.target == TANGENT or (used and op.target != USER_BACKWARD):
                waiting.update(dict.fromkeys(op.results, number))


def _torn(op: Op, pairs: Sequence[str]) -> str:
    number = op.args[5] if op.target == USER_BACKWARD else -1
    where = pairs[number] if isinstance(number, int) and 0 <= number < len(pairs) else ""
    where = where or (pairs[0] if pairs else "a backward of the model's own")
    return (
        f"{where}: this hook needs gradients of the module's inputs and outputs together, and the "
        "module holds several layers; register it on the layers, or use gradients of one side alone"
    )
