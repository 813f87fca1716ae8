"""`torch.autograd.grad` inside a forward: gradients as operators of the step, with their own gradients.

What was recorded between inputs and outputs is differentiated by torch apart from the recording, and
the operators of that are recorded in turn: penalties on gradients, inner steps, derivatives by inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import (
    apart_from_recording,
    fake_mode_of,
    is_operator,
    recorded_node,
    recorded_value,
    recording_graph,
)

GRAD = inspect.signature(torch.autograd.grad)
DETACH = torch.ops.aten.detach.default


def gradients(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
    """What `torch.autograd.grad` gives. Raises TraceError where a step could not give the same."""
    call = GRAD.bind(*args, **kwargs)
    call.apply_defaults()
    options = call.arguments
    if options["is_grads_batched"] or options["materialize_grads"]:
        raise TraceError(f"{current_user_line()}: grad of batched or materialised gradients")
    outputs, inputs = _tensors(options["outputs"]), _tensors(options["inputs"])
    seeds = _tensors(options["grad_outputs"])
    seeds = [torch.ones_like(o) if s is None else s for o, s in zip(outputs, seeds, strict=False)]
    path = _Path(outputs, inputs)
    derived = path.gradients(inputs, seeds, options["create_graph"])
    if None in derived and not options["allow_unused"]:
        raise TraceError(f"{current_user_line()}: an input of grad was not used by its outputs")
    if options["create_graph"]:
        return derived
    return tuple(None if g is None else g.detach() for g in derived)


def _tensors(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)


class _Path:
    """What was recorded from inputs to outputs: `nodes` in order, and `sources` that they read."""

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self.outputs = [recorded_node(t) for t in outputs]
        self.inputs = [recorded_node(t) for t in inputs]
        if None in self.outputs or None in self.inputs:
            raise TraceError(
                f"{current_user_line()}: grad of a tensor that the step does not compute"
            )
        below = _reached(recording_graph().nodes, self.inputs, lambda n: n.all_input_nodes)
        above = _reached(reversed(recording_graph().nodes), self.outputs, lambda n: list(n.users))
        self.nodes = [
            n for n in recording_graph().nodes if n in below and n in above and n not in self.inputs
        ]
        for node in self.nodes:
            self.refuse(node)
        inside = set(self.nodes)
        read = [n for node in self.nodes for n in node.all_input_nodes if n not in inside]
        self.sources = list(dict.fromkeys([*self.inputs, *read]))

    def refuse(self, node: fx.Node) -> None:
        """Refuse what does not run again as it ran."""
        target = node.target
        drawn = is_operator(target) and torch.Tag.nondeterministic_seeded in target.tags
        if drawn or target is DETACH:
            raise TraceError(
                f"{current_user_line()}: grad through {target}: it cannot be computed again apart. Draw "
                "random numbers before the inputs of grad, and detach outside of what is differentiated"
            )

    def gradients(
        self, inputs: Sequence[Tensor], seeds: Sequence[Tensor], again: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradients; `again`: of operators that have derivatives themselves."""
        values = [n.meta["val"] for n in self.sources]
        mode = fake_mode_of(values[0])
        with apart_from_recording(), mode:
            shapes = [torch.empty_like(v) for v in (*values, *seeds)]
            for value in shapes[: len(inputs)]:
                value.requires_grad_(True)
            derived = make_fx(self.local(len(seeds), again))(*shapes)
        known = dict(zip(self.inputs, inputs, strict=True))
        sources = [known[n] if n in known else recorded_value(n) for n in self.sources]
        return replayed(derived, [*sources, *seeds])

    def local(self, seeds: int, again: bool) -> Callable[..., tuple[Tensor | None, ...]]:
        """The gradients as a function of sources and seeds."""

        def function(*values: Tensor) -> tuple[Tensor | None, ...]:
            known: dict[fx.Node, Any] = dict(zip(self.sources, values, strict=False))
            for node in self.nodes:
                args = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
                known[node] = node.target(*args[0], **args[1])  # type: ignore[operator]
            given = values[len(values) - seeds :] if seeds else None
            outputs, inputs = ([known[n] for n in nodes] for nodes in (self.outputs, self.inputs))
            return torch.autograd.grad(
                outputs, inputs, given, create_graph=again, allow_unused=True
            )

        return function


def _reached(
    nodes: Any, start: Sequence[Any], before: Callable[[fx.Node], Sequence[fx.Node]]
) -> set[fx.Node]:
    """Nodes that are reached from some, in the order of `nodes`."""
    reached = set(start)
    for node in nodes:
        if any(n in reached for n in before(node)):
            reached.add(node)
    return reached


def replayed(graph: fx.GraphModule, values: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Run a graph on recorded tensors, which records it; what torch detaches to keep it is no detach."""
    known: dict[fx.Node, Any] = {}
    rest = iter(values)
    for node in graph.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        if node.op == "placeholder":
            known[node] = next(rest)
        elif node.op == "get_attr":
            known[node] = getattr(graph, str(node.target))
        elif node.op == "output":
            return tuple(args[0])
        elif node.target is DETACH:
            known[node] = args[0]
        else:
            known[node] = node.target(*args, **kwargs)
    raise AssertionError("a graph without an output")
