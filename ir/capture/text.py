"""Text of the values between the passes of a trace, for `--print-after`; nothing reads it back."""

from __future__ import annotations

from collections.abc import Iterator

from ..text.function import print_argument, print_op, print_type
from ..text.lexer import name_text
from .export import Recording
from .graph import FlatGraph
from .outline import GraphSegment
from .passes.simplify import JointGraph


def print_recording(recording: Recording) -> str:
    """The operators that torch.fx recorded, one a line, as it prints them."""
    lines = [str(node.format_node()) for node in recording.graph.graph.nodes if node.users]
    return "\n".join(["recording", *(f"  {line.replace(chr(10), ' ')}" for line in lines)])


def print_graph(graph: FlatGraph) -> str:
    """A flat graph: inputs, operators with the numbers of the modules that ran them, the loss."""
    return "\n".join(["graph", *(f"  {line}" for line in _graph(graph))])


def _graph(graph: FlatGraph) -> Iterator[str]:
    for value, parameter in graph.parameters.items():
        yield f"{parameter.kind} %{value} {name_text(parameter.name)} : {print_type(parameter.type)}"
    for value, item in graph.inputs.items():
        yield f"input %{value} {name_text(item.name)} : {print_type(item.type)}"
    yield f"key %{graph.key}"
    yield from (print_op(op, graph.types) for op in graph.ops)
    for name, value in graph.updates.items():
        yield f"update {name_text(name)} = %{value}"
    yield f"loss %{graph.loss}"
    yield from (f"output %{value}" for value in graph.returned)


def print_segments(segments: list[GraphSegment]) -> str:
    """The segments of a graph: the module or the glue, and the results of its operators."""
    lines = ["segments"]
    for segment in segments:
        path = name_text(segment.unit[0]) if segment.unit else f"glue {segment.name}"
        lines.append(f"  {path}: {len(segment.ops)} operators")
        lines += [f"    {op.target} {print_argument(op.results)}" for op in segment.ops]
    return "\n".join(lines)


def print_joint_graph(joint: JointGraph) -> str:
    """The operators of a function and of its gradients before they are told apart."""
    outputs = " ".join(f"%{value}" for value in joint.outputs)
    return "\n".join(
        [
            "joint graph",
            *(f"  {print_op(op, joint.types)}" for op in joint.ops),
            f"  outputs {outputs}",
        ]
    )
