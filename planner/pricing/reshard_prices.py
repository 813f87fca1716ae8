"""Seconds to reshard values between calls of different strategies, forward and backward."""

from __future__ import annotations

from ...cost_model.communication.collective import CommGroup, collective_seconds
from ...ir.analysis.model_graph import CallEnd
from ...ir.errors import MismatchError
from ...ir.lowering.common_mesh import Resharding
from ...ir.lowering.reshard import BoundaryLayouts
from ...ir.model.layout import local_type
from ...ir.model.mesh import MICRO, Axis, Mesh, common_mesh
from ...ir.plan.sharding import Sharding
from ...ir.plan.strategy import Strategy
from ..question.candidate import Assignment
from .function_prices import FunctionPrices

Endpoint = tuple[str, int, Strategy]  # function, position among its results or arguments, strategy


class ReshardPrices:
    """Prices the reshardings that programs make between the calls of a model, each one once."""

    def __init__(self, function_prices: FunctionPrices) -> None:
        self.function_prices, self.graph = function_prices, function_prices.flow.graph
        self.known: dict[tuple[Endpoint, Endpoint, Mesh], float | None] = {}

    def seconds(self, assignment: Assignment) -> list[float] | None:
        """Seconds per micro-batch and call to reshard its arguments and return their gradients.

        None where no common mesh or no sequence of collectives exists.
        """
        calls, decisions = self.graph.model.calls, assignment.decisions
        seconds_per_call = [0.0] * len(calls)
        if len({d.strategy for d in decisions}) == 1:
            return seconds_per_call
        common = common_mesh([d.strategy.mesh for d in decisions])
        if common is None:
            return None
        shared_mesh = Mesh((Axis(MICRO, assignment.micro_batches), *common.axes))
        strategy_of = [d.strategy for d in decisions for _ in range(d.first, d.last)]
        for number, call in enumerate(calls):
            for position, name in enumerate(call.arguments):
                maker = self.graph.maker(name)
                if maker is None or strategy_of[maker.call] == strategy_of[number]:
                    continue
                seconds = self.price(maker, CallEnd(number, position), strategy_of, shared_mesh)
                if seconds is None:
                    return None
                seconds_per_call[number] += seconds
        return seconds_per_call

    def price(
        self, maker: CallEnd, reader: CallEnd, strategy_of: list[Strategy], shared_mesh: Mesh
    ) -> float | None:
        """Cached `reshard_seconds`: equal for ends of the same functions and strategies."""
        source, target = (
            (self.graph.function(end.call).name, end.position, strategy_of[end.call])
            for end in (maker, reader)
        )
        key = source, target, shared_mesh
        if key not in self.known:
            shardings = {
                end.call: self.sharding(end.call, strategy_of[end.call], shared_mesh)
                for end in (maker, reader)
            }
            self.known[key] = self.reshard_seconds(maker, reader, shardings, shared_mesh)
        return self.known[key]

    def sharding(self, call: int, strategy: Strategy, shared_mesh: Mesh) -> Sharding | None:
        """The sharding of a call; batch-only calls see all micro-batches at once."""
        micro_batches = 1 if call in self.graph.batch_only else shared_mesh.axes[0].size
        name = self.graph.function(call).name
        return self.function_prices.sharding(name, strategy, micro_batches)

    def reshard_seconds(
        self,
        maker: CallEnd,
        reader: CallEnd,
        shardings: dict[int, Sharding | None],
        shared_mesh: Mesh,
    ) -> float | None:
        """Seconds to reshard a value from its maker to a reader, and its gradient back."""
        known = {call: sharding for call, sharding in shardings.items() if sharding is not None}
        if len(known) < len(shardings):
            return None
        layouts = BoundaryLayouts(self.function_prices.flow, known.__getitem__, shared_mesh)
        output = self.graph.function(maker.call).outputs[maker.position]
        argument = self.graph.function(reader.call).activations()[reader.position]
        try:
            reshardings = [layouts.forward_resharding(*reader)]
            if output.tangent is not None and argument.gradient is not None:
                reshardings.append(layouts.backward_resharding(*reader))
        except MismatchError:
            return None
        return sum(self.collective_seconds_of(r, shared_mesh) for r in reshardings)

    def collective_seconds_of(self, resharding: Resharding, shared_mesh: Mesh) -> float:
        """Seconds of the collectives of one resharding; slicing and scaling are free."""
        total = 0.0
        for step in resharding.steps:
            if step.kind in ("cut", "share"):
                continue
            full = step.before if step.kind != "all_gather" else step.after
            amount = local_type(resharding.type, resharding.factors, full, shared_mesh).bytes
            group = CommGroup(shared_mesh.axes[step.axis].size, shared_mesh.stride(step.axis))
            total += float(
                collective_seconds(step.kind, amount, group, self.function_prices.cluster)
            )
        return total
