"""What planning must know of a model's values: the batch they depend on, their tokens, the loss."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd

from ...ir.analysis.dataflow import Dataflow, analyse_dataflow
from ...ir.analysis.loss_terms import summed_names
from ...ir.cached import cached_method
from ...ir.model.model import Function, Model


class ModelValues:
    """Facts on the values of one model, by function.

    `batch_only_names`: values between calls that are computed from the batch alone;
    `batch_only_values`, `loss_values`, `summed_values`: the same, the loss, and all sums over samples
    among each function's own values.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.functions = model, {f.name: f for f in model.functions}
        self.flow: Dataflow = analyse_dataflow(model)
        self.batch_only_names = {
            name for i in model.batch_only_calls() for name in model.calls[i].results
        }
        self.batch_only_names.update(item.name for item in model.inputs)
        self.loss_values = {f.name: self.values_named(f, {model.loss}) for f in model.functions}
        summed = summed_names(self.flow)
        self.summed_values = {f.name: self.values_named(f, summed) for f in model.functions}
        self.batch_only_values = {
            f.name: self.values_named(f, self.batch_only_names) for f in model.functions
        }

    def values_named(self, function: Function, names: Collection[str]) -> frozenset[int]:
        """Activations and outputs of a function that some call binds to one of these names."""
        boundary = [i.value for i in function.activations()] + [o.value for o in function.outputs]
        return frozenset(
            value
            for call in self.model.calls
            if call.function == function.name
            for name, value in zip((*call.arguments, *call.results), boundary, strict=True)
            if name in names
        )

    @property
    def has_tokens(self) -> bool:
        """Whether samples have a token dimension that an axis can split."""
        return any(self.flow.token_factors.values())

    @cached_method
    def batch_divisor(self, name: str) -> int:
        """The largest degree by which the batch dimension of every value of a function divides."""
        function, axes = self.functions[name], self.flow.axes[name]
        shards = ((v, self.flow.batch_shard(function, v)) for v in range(len(function.types)))
        sizes = [axes.factors[v][shard[0]][shard[1]] for v, shard in shards if shard is not None]
        return gcd(*sizes) if sizes else self.model.batch
