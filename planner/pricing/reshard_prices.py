"""Seconds that values take between calls of different strategies, forth and their gradients back."""

from __future__ import annotations

from ...cost_model.communication.collective import collective_seconds
from ...ir.layout import Layout, local_type
from ...ir.lowering.common_mesh import Passage, grid, lying, passage
from ...ir.lowering.localize import MICRO
from ...ir.mesh import Axis, Mesh
from ...ir.plan.strategy import Strategy
from ..candidate import Decision
from .function_prices import Entries

End = tuple[int, int, Strategy]  # call, position among its results or arguments, strategy


class Passages:
    """Prices passages between the calls of a model, each once."""

    def __init__(self, entries: Entries) -> None:
        self.entries, self.model = entries, entries.model
        self.makers = {
            name: (number, position)
            for number, call in enumerate(self.model.calls)
            for position, name in enumerate(call.results)
        }
        self.priced: dict[tuple[End, End, Mesh], float | None] = {}

    def seconds(self, decisions: tuple[Decision, ...], micro_batches: int) -> list[float] | None:
        """Per call, the seconds per micro-batch to bring its arguments and to return their
        gradients; None where something cannot pass."""
        spent = [0.0] * len(self.model.calls)
        if len({d.strategy for d in decisions}) == 1:
            return spent
        between = grid([d.strategy.mesh for d in decisions])
        if between is None:
            return None
        onto = Mesh((Axis(MICRO, micro_batches), *between.axes))
        of = [d.strategy for d in decisions for _ in range(d.first, d.last)]
        for number, call in enumerate(self.model.calls):
            for position, name in enumerate(call.arguments):
                maker, place = self.makers.get(name, (None, 0))
                if maker is None or of[maker] == of[number]:
                    continue
                found = self.price((maker, place, of[maker]), (number, position, of[number]), onto)
                if found is None:
                    return None
                spent[number] += found
        return spent

    def price(self, source: End, target: End, onto: Mesh) -> float | None:
        calls = self.model.calls
        ends = tuple((calls[c].function, p, s) for c, p, s in (source, target))
        key = (*ends, onto)
        if key not in self.priced:  # type: ignore[comparison-overlap]
            self.priced[key] = self.way(source, target, onto)  # type: ignore[index]
        return self.priced[key]  # type: ignore[index]

    def way(self, source: End, target: End, onto: Mesh) -> float | None:
        micro_batches = onto.axes[0].size
        model, functions, axes = self.model, self.entries.functions, self.entries.flow.axes
        made, taken = (functions[model.calls[end[0]].function] for end in (source, target))
        splits = [
            self.entries.sharding(
                model.calls[call].function, strategy, 1 if call in model.once() else micro_batches
            )
            for call, _, strategy in (source, target)
        ]
        if splits[0] is None or splits[1] is None:
            return None
        output, item = made.outputs[source[1]], taken.activations()[target[1]]
        index = taken.inputs.index(item)

        def on(side: int, value: int, layout: Layout):  # type: ignore[no-untyped-def]
            sharding = splits[side]
            assert sharding is not None
            function = (made, taken)[side]
            return lying(value, layout, function, axes[function.name], sharding.mesh, onto)

        ways = [
            passage(
                on(0, output.value, splits[0].boundary.outputs[source[1]]),
                on(1, item.value, splits[1].boundary.inputs[index]),
                onto,
            )
        ]
        tangent = splits[0].boundary.tangents[source[1]]
        gradient = splits[1].boundary.gradients[index]
        if output.tangent is not None and item.gradient is not None:
            assert tangent is not None
            assert gradient is not None
            ways.append(
                passage(on(1, item.gradient, gradient), on(0, output.tangent, tangent), onto)
            )
        if None in ways:
            return None
        return sum(self.steps(way, onto) for way in ways if way is not None)

    def steps(self, way: Passage, onto: Mesh) -> float:
        """Seconds of a passage: collectives on the whole of which every rank ends with a piece."""
        total = 0.0
        for step in way.steps:
            if step.kind in ("cut", "share"):
                continue
            whole = step.before if step.kind != "all_gather" else step.after
            amount = local_type(way.type, way.factors, whole, onto).bytes
            size, stride = onto.axes[step.axis].size, onto.stride(step.axis)
            total += float(
                collective_seconds(step.kind, amount, size, stride, self.entries.cluster)
            )
        return total
