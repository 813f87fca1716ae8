"""Layouts of values between calls, and the resharding from producer to consumer.

Calls of one strategy agree, so nothing happens there. Where two strategies meet, the collectives of
`common_mesh` run before the call that consumes the value; its gradient is resharded in the other
direction after that call's backward.
"""

from __future__ import annotations

from collections.abc import Callable

from ..analysis.dataflow import Dataflow
from ..analysis.model_graph import CallEnd
from ..errors import MismatchError
from ..model.layout import REPLICATE, Layout
from ..model.mesh import Mesh
from ..plan.sharding import Sharding
from .common_mesh import Resharding, TensorLayout, resharding, tensor_layout


class BoundaryLayouts:
    """Layouts and reshardings between calls that are sharded as `sharding(call)` says.

    `mesh` is the common mesh of their strategies, with micro-batches outermost.
    """

    def __init__(self, flow: Dataflow, sharding: Callable[[int], Sharding], mesh: Mesh) -> None:
        self.flow, self.graph, self.sharding, self.mesh = flow, flow.graph, sharding, mesh

    def producer_layout(self, name: str) -> TensorLayout:
        """Layout of a value where it is produced; for batch inputs, the layout of the first consumer."""
        maker = self.graph.maker(name)
        if maker is not None:
            output = self.graph.function(maker.call).outputs[maker.position]
            layout = self.sharding(maker.call).boundary.outputs[maker.position]
            return self.on_mesh(maker.call, output.value, layout)
        readers = self.graph.readers(name)
        if readers:
            return self.consumer_layout(*readers[0])
        item = next(i for i in self.graph.model.inputs if i.name == name)
        replicated: Layout = (REPLICATE,) * len(self.mesh.axes)
        return TensorLayout(item.type, tuple((size,) for size in item.type.shape), replicated)

    def consumer_layout(self, call: int, position: int) -> TensorLayout:
        """Layout in which a call wants its argument."""
        number, value = self.argument(call, position)
        return self.on_mesh(call, value, self.sharding(call).boundary.inputs[number])

    def forward_resharding(self, call: int, position: int) -> Resharding:
        """Resharding of an argument before a call; raises MismatchError where there is none."""
        name = self.graph.model.calls[call].arguments[position]
        return self.resharding(
            name, self.producer_layout(name), self.consumer_layout(call, position)
        )

    def backward_resharding(self, call: int, position: int) -> Resharding:
        """Resharding of an argument's gradient, from a call's backward to the producer's.

        Raises MismatchError where there is none, and for a value of the batch, which has no gradient.
        """
        name = self.graph.model.calls[call].arguments[position]
        maker = self.graph.maker(name)
        if maker is None:
            raise MismatchError(f"{name} comes from the batch: it has no gradient")
        return self.resharding(
            name, self.gradient_layout(call, position), self.tangent_layout(maker)
        )

    def gradient_layout(self, call: int, position: int) -> TensorLayout:
        """Layout in which a call's backward leaves the gradient of an argument."""
        number, _ = self.argument(call, position)
        gradient = self.graph.function(call).inputs[number].gradient
        layout = self.sharding(call).boundary.gradients[number]
        assert gradient is not None
        assert layout is not None
        return self.on_mesh(call, gradient, layout)

    def tangent_layout(self, maker: CallEnd) -> TensorLayout:
        """Layout in which a call's backward wants the gradient of a result."""
        tangent = self.graph.function(maker.call).outputs[maker.position].tangent
        layout = self.sharding(maker.call).boundary.tangents[maker.position]
        assert tangent is not None
        assert layout is not None
        return self.on_mesh(maker.call, tangent, layout)

    def argument(self, call: int, position: int) -> tuple[int, int]:
        """The number among the function's inputs of the one that an argument fills, and its value."""
        function = self.graph.function(call)
        item = function.activations()[position]
        return function.inputs.index(item), item.value

    def on_mesh(self, call: int, value: int, layout: Layout) -> TensorLayout:
        """A layout on a call's own mesh as one on the common mesh."""
        function = self.graph.function(call)
        axes, mesh = self.flow.axes[function.name], self.sharding(call).mesh
        return tensor_layout(value, layout, function, axes, mesh, self.mesh)

    def resharding(self, name: str, source: TensorLayout, target: TensorLayout) -> Resharding:
        """The collectives from `source` to `target`; raises MismatchError where sizes do not divide."""
        steps = resharding(source, target, self.mesh)
        if steps is None:
            raise MismatchError(
                f"{name} of {list(source.type.shape)} cannot pass from {source.layout} to "
                f"{target.layout} on {self.mesh}: its sizes do not divide"
            )
        return steps
