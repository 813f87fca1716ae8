"""One training step of a traced model as a placement graph: forward, backward and optimizer.

The operators are the priced units of the linearized step. Views are left out: readers of a view
read the tensor that owns its memory. State tensors take no time; they account for their own bytes
and their optimizer states, and are updated on their own device. The batch is available on every
device."""

from __future__ import annotations

from ...ir.devices.cluster import Cluster
from ...ir.lowering.linearize import PlacementUnit, TrainingStep, linearize, units
from ...ir.model.mesh import Axis, Mesh
from ...ir.model.model import Model, Parameter
from ...ir.model.tensor import ITEM_BYTES
from ...ir.plan.placement import PlacementEdge, PlacementGraph, PlacementNode
from ...ir.plan.plan import Optimizer
from ..operators.operator_cost import Pricer
from ..operators.roofline import op_seconds

UPDATE_FLOPS = 12  # of an adaptive optimizer per element (Adam's formula, counted)


def graph_of(model: Model, cluster: Cluster, optimizer: Optimizer) -> PlacementGraph:
    """The graph of one step over the traced batch, in microseconds of the cluster's device."""
    prices = _UnitPrices(model, linearize(model), cluster, optimizer)
    producers: dict[int, tuple[int, int]] = {}  # tensor -> (unit, result position)
    nodes: list[PlacementNode] = []
    edges: list[PlacementEdge] = []
    names = {name: value for value, name in prices.step.state_tensors.items()}
    for number, unit in enumerate(units(prices.step, model)):
        nodes.append(prices.node(number, unit))
        edges += [
            PlacementEdge(producers[v][0], number, prices.step.types[v].bytes, producers[v][1])
            for v in unit.reads
        ]
        results = prices.step.ops[unit.op].results if unit.op >= 0 else ()
        producers.update((v, (number, place)) for place, v in enumerate(results) if v >= 0)
        if unit.state_tensor in names and not unit.update:
            producers[names[unit.state_tensor]] = number, 0
    return PlacementGraph(tuple(nodes), tuple(edges), model.name, "traced by plait")


class _UnitPrices:
    """Microseconds and bytes of the units of one step."""

    def __init__(
        self, model: Model, step: TrainingStep, cluster: Cluster, optimizer: Optimizer
    ) -> None:
        self.step, self.optimizer, self.device = step, optimizer, cluster.device
        self.parameters = {p.name: p for p in model.parameters}
        self.pricer = Pricer(cluster, Mesh((Axis("dp", 1),)))

    def node(self, number: int, unit: PlacementUnit) -> PlacementNode:
        if unit.op >= 0:
            op, mark = self.step.ops[unit.op], self.step.origins[unit.op]
            us = 1e6 * self.pricer.op(self.step.function, op).seconds
            output = sum(self.step.types[v].bytes for v in op.results if v >= 0)
            return PlacementNode(number, us, unit.name, 0, output, backward=mark.backward or None)
        tensor = self.parameters[unit.state_tensor]
        if unit.update:
            us = 1e6 * self.update_seconds(tensor)
            return PlacementNode(number, us, unit.name, colocation=tensor.name, backward=True)
        states = self.optimizer.states * self.optimizer.state_bytes if tensor.trainable else 0
        persistent_bytes = tensor.type.bytes + tensor.type.elements * states
        return PlacementNode(number, 0.0, unit.name, persistent_bytes, colocation=tensor.name)

    def update_seconds(self, tensor: Parameter) -> float:
        """The optimizer's step of a parameter in place, or the copy of a buffer's next value."""
        item, elements = ITEM_BYTES[tensor.type.dtype], tensor.type.elements
        flops, each = 0, 2 * item
        if tensor.trainable:
            flops = UPDATE_FLOPS
            each = 3 * item + 2 * self.optimizer.states * self.optimizer.state_bytes
        work = float(flops * elements), each * elements
        return float(op_seconds("pointwise", *work, tensor.type.dtype, self.device))
