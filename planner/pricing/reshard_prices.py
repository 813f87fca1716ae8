"""Seconds to reshard values between calls of different strategies, forward and backward."""

from __future__ import annotations

from ...cost_model.communication.collective import Group, collective_seconds
from ...ir.layout import Layout, local_type
from ...ir.lowering.common_mesh import Resharding, resharding, tensor_layout
from ...ir.mesh import MICRO, Axis, Mesh, common_mesh
from ...ir.plan.strategy import Strategy
from ..candidate import Assignment
from .function_prices import FunctionPrices

Endpoint = tuple[int, int, Strategy]  # call, position among its results or arguments, strategy


class ReshardPrices:
    """Prices reshardings between the calls of a model, each one once."""

    def __init__(self, function_prices: FunctionPrices) -> None:
        self.function_prices, self.model = function_prices, function_prices.model
        self.producers = {
            name: (number, position)
            for number, call in enumerate(self.model.calls)
            for position, name in enumerate(call.results)
        }
        self.known: dict[tuple[Endpoint, Endpoint, Mesh], float | None] = {}

    def seconds(self, assignment: Assignment) -> list[float] | None:
        """Seconds per micro-batch and call to reshard its arguments and return their gradients.

        None where no common mesh or no sequence of collectives exists.
        """
        seconds_per_call, decisions = [0.0] * len(self.model.calls), assignment.decisions
        if len({d.strategy for d in decisions}) == 1:
            return seconds_per_call
        common = common_mesh([d.strategy.mesh for d in decisions])
        if common is None:
            return None
        shared_mesh = Mesh((Axis(MICRO, assignment.micro_batches), *common.axes))
        strategy_of = [d.strategy for d in decisions for _ in range(d.first, d.last)]
        for number, call in enumerate(self.model.calls):
            for position, name in enumerate(call.arguments):
                producer, result = self.producers.get(name, (None, 0))
                if producer is None or strategy_of[producer] == strategy_of[number]:
                    continue
                seconds = self.price(
                    (producer, result, strategy_of[producer]),
                    (number, position, strategy_of[number]),
                    shared_mesh,
                )
                if seconds is None:
                    return None
                seconds_per_call[number] += seconds
        return seconds_per_call

    def price(self, source: Endpoint, target: Endpoint, shared_mesh: Mesh) -> float | None:
        """Cached `reshard_seconds`: equal for endpoints of the same functions and strategies."""
        calls = self.model.calls
        endpoints = tuple((calls[c].function, p, s) for c, p, s in (source, target))
        key = (*endpoints, shared_mesh)
        if key not in self.known:  # type: ignore[comparison-overlap]
            self.known[key] = self.reshard_seconds(source, target, shared_mesh)  # type: ignore[index]
        return self.known[key]  # type: ignore[index]

    def reshard_seconds(
        self, source: Endpoint, target: Endpoint, shared_mesh: Mesh
    ) -> float | None:
        """Seconds to reshard a value from its producer to its consumer, and its gradient back."""
        micro_batches = shared_mesh.axes[0].size
        model, functions, axes = (
            self.model,
            self.function_prices.functions,
            self.function_prices.flow.axes,
        )
        producer, consumer = (functions[model.calls[end[0]].function] for end in (source, target))
        shardings = [
            self.function_prices.sharding(
                model.calls[call].function,
                strategy,
                1 if call in model.batch_only_calls() else micro_batches,
            )
            for call, _, strategy in (source, target)
        ]
        if shardings[0] is None or shardings[1] is None:
            return None
        output, argument = producer.outputs[source[1]], consumer.activations()[target[1]]
        index = consumer.inputs.index(argument)

        def placed(endpoint: int, value: int, layout: Layout):  # type: ignore[no-untyped-def]
            sharding = shardings[endpoint]
            assert sharding is not None
            function = (producer, consumer)[endpoint]
            return tensor_layout(
                value, layout, function, axes[function.name], sharding.mesh, shared_mesh
            )

        reshardings = [
            resharding(
                placed(0, output.value, shardings[0].boundary.outputs[source[1]]),
                placed(1, argument.value, shardings[1].boundary.inputs[index]),
                shared_mesh,
            )
        ]
        tangent = shardings[0].boundary.tangents[source[1]]
        gradient = shardings[1].boundary.gradients[index]
        if output.tangent is not None and argument.gradient is not None:
            assert tangent is not None
            assert gradient is not None
            reshardings.append(
                resharding(
                    placed(1, argument.gradient, gradient),
                    placed(0, output.tangent, tangent),
                    shared_mesh,
                )
            )
        if None in reshardings:
            return None
        return sum(self.collective_seconds_of(r, shared_mesh) for r in reshardings if r is not None)

    def collective_seconds_of(self, resharding: Resharding, shared_mesh: Mesh) -> float:
        """Seconds of the collectives of one resharding; slicing and scaling are free."""
        total = 0.0
        for step in resharding.steps:
            if step.kind in ("cut", "share"):
                continue
            full = step.before if step.kind != "all_gather" else step.after
            amount = local_type(resharding.type, resharding.factors, full, shared_mesh).bytes
            group = Group(shared_mesh.axes[step.axis].size, shared_mesh.stride(step.axis))
            total += float(
                collective_seconds(step.kind, amount, group, self.function_prices.cluster)
            )
        return total
