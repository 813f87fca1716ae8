"""One training step of a traced model as a placement graph: forward, backward and optimizer.

Views are not operators here: who reads a view reads the tensor whose memory it is. Parameters are
operators that take no time and hold their bytes and the optimizer's; the update of a parameter must
be where the parameter is. The batch is at hand everywhere.
"""

from __future__ import annotations

from collections import defaultdict

from ..ir.cluster import Cluster
from ..ir.mesh import Axis, Mesh
from ..ir.model import Call, Function, Model, Op
from ..ir.placement import PlacementEdge, PlacementGraph, PlacementNode
from ..ir.plan import Optimizer
from ..ir.tensor import ITEM_BYTES, TensorType
from .compute import op_seconds
from .function import Pricer

UPDATE_FLOPS = 12  # of an adaptive optimizer per element (Adam's formula, counted)


class Made:
    """A tensor in memory: who makes it, as which of its results, and its type."""

    __slots__ = ("node", "result", "type")

    def __init__(self, node: int, result: int, type_: TensorType) -> None:
        self.node, self.result, self.type = node, result, type_


def graph_of(model: Model, cluster: Cluster, optimizer: Optimizer) -> PlacementGraph:
    """The graph of one step over the traced batch, in microseconds of the cluster's device."""
    step = Step(model, cluster, optimizer)
    calls = list(model.calls)
    for call in calls:
        step.forward(call)
    for call in reversed(calls):
        step.backward(call)
    step.update()
    return PlacementGraph(tuple(step.nodes), tuple(step.edges), model.name, "traced by plait")


class Step:
    """Builds the graph; `made` finds a tensor by call and value, `named` by its name in the model."""

    def __init__(self, model: Model, cluster: Cluster, optimizer: Optimizer) -> None:
        self.model, self.optimizer, self.device = model, optimizer, cluster.device
        self.pricer = Pricer(cluster, Mesh((Axis("dp", 1),)))
        self.functions = {f.name: f for f in model.functions}
        self.roots = {f.name: self.storage(f) for f in model.functions}
        self.nodes: list[PlacementNode] = []
        self.edges: list[PlacementEdge] = []
        self.made: dict[str, dict[int, Made]] = {}
        self.named: dict[str, Made] = {}
        self.gradients: dict[str, list[Made]] = defaultdict(list)
        self.owner = {p.name: p.name for p in model.parameters}
        self.owner |= {alias: p.name for p in model.parameters for alias in p.aliases}
        for parameter in model.parameters:
            states = optimizer.states * optimizer.state_bytes if parameter.trainable else 0
            held = parameter.type.bytes + parameter.type.elements * states
            node = self.node(parameter.name, 0.0, persistent=held, colocation=parameter.name)
            self.named[parameter.name] = Made(node, 0, parameter.type)

    def storage(self, function: Function) -> list[int]:
        """For every value the value whose memory it shares: views own none."""
        roots = list(range(len(function.types)))
        for op in function.ops:
            operands = op.operands()
            if operands and self.pricer.load(function, op).work == "view":
                for result in op.results:
                    roots[result] = roots[operands[0]]
        return roots

    def node(
        self, name: str, us: float, *, persistent: int = 0, output: int = 0,
        backward: bool | None = None, colocation: str | None = None,
    ) -> int:  # fmt: skip
        number = len(self.nodes)
        self.nodes.append(
            PlacementNode(number, us, name, persistent, output, 0, colocation, backward)
        )
        return number

    def read(self, reader: int, tensors: list[Made]) -> None:
        """Edges to a reader, one per tensor."""
        for node, result in dict.fromkeys((t.node, t.result) for t in tensors):
            size = next(t.type.bytes for t in tensors if (t.node, t.result) == (node, result))
            self.edges.append(PlacementEdge(node, reader, size, result))

    def forward(self, call: Call) -> None:
        function = self.functions[call.function]
        values: dict[int, Made] = {}
        for item, name in zip(function.held(), call.parameters, strict=True):
            values[item.value] = self.named[self.owner[name]]
        for item, name in zip(function.activations(), call.arguments, strict=True):
            if name in self.named:
                values[item.value] = self.named[name]
        self.made[call.path + call.results[0]] = values
        self.run(call, function, function.forward_ops, values, None)
        for output, name in zip(function.outputs, call.results, strict=True):
            if (found := self.find(function, values, output.value)) is not None:
                self.named[name] = found

    def backward(self, call: Call) -> None:
        function = self.functions[call.function]
        if not function.differentiable:
            return
        values = self.made[call.path + call.results[0]]
        for output, name in zip(function.outputs, call.results, strict=True):
            if output.tangent is not None and self.gradients[name]:
                values[output.tangent] = self.total(name)
        self.run(call, function, function.backward_ops, values, True)
        names = {i.value: n for i, n in zip(function.held(), call.parameters, strict=True)}
        names |= {i.value: n for i, n in zip(function.activations(), call.arguments, strict=True)}
        for item in function.inputs:
            if item.gradient is not None and item.value in names:
                name = names[item.value]
                if (found := self.find(function, values, item.gradient)) is not None:
                    self.gradients[self.owner.get(name, name)].append(found)

    def run(
        self, call: Call, function: Function, ops: tuple[Op, ...], values: dict[int, Made],
        backward: bool | None,
    ) -> None:  # fmt: skip
        roots = self.roots[function.name]
        for op in ops:
            results = [v for v in op.results if v >= 0]
            if results and all(roots[v] != v for v in results):
                continue
            seconds = self.pricer.op(function, op).seconds
            name = ".".join(part for part in (call.path, op.scope, op.target) if part)
            output = sum(function.types[v].bytes for v in results)
            node = self.node(name, seconds * 1e6, output=output, backward=backward)
            found = [self.find(function, values, v) for v in op.operands()]
            self.read(node, [tensor for tensor in found if tensor is not None])
            for place, value in enumerate(op.results):
                if value >= 0:
                    values[value] = Made(node, place, function.types[value])

    def find(self, function: Function, values: dict[int, Made], value: int) -> Made | None:
        """The tensor that holds a value; None for what is at hand everywhere."""
        return values.get(self.roots[function.name][value])

    def total(self, name: str) -> Made:
        """The sum of all gradients of a tensor."""
        parts = self.gradients[name]
        if len(parts) == 1:
            return parts[0]
        shape = parts[0].type
        moved = (len(parts) + 1) * shape.bytes
        us = 1e6 * float(op_seconds("pointwise", 0.0, moved, shape.dtype, self.device))
        node = self.node(f"{name}: sum of gradients", us, output=shape.bytes, backward=True)
        self.read(node, parts)
        return Made(node, 0, shape)

    def update(self) -> None:
        """The optimizer's step of every parameter, in place."""
        for parameter in self.model.parameters:
            if parameter.trainable and self.gradients[parameter.name]:
                gradient = self.total(parameter.name)
                item = ITEM_BYTES[parameter.type.dtype]
                each = 3 * item + 2 * self.optimizer.states * self.optimizer.state_bytes
                elements = parameter.type.elements
                seconds = op_seconds("pointwise", float(UPDATE_FLOPS * elements), each * elements,
                                     parameter.type.dtype, self.device)  # fmt: skip
                node = self.node(f"{parameter.name}: update", 1e6 * float(seconds), backward=True,
                                 colocation=parameter.name)  # fmt: skip
                self.read(node, [gradient, self.named[parameter.name]])
