"""Price of every call of a model under a strategy and a memory action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from ...ir.cached import cached_method
from ...ir.plan.memory_action import KEEP, RECOMPUTE
from ..question.candidate import Assignment, CallPoint, ReplicaPoint, RunPoint
from ..question.strategy_space import ModelAxes
from .function_prices import CallPrice, FunctionPrices


class CallPrices:
    """Looks up the price of every call, in micro-batches of a global batch."""

    def __init__(self, function_prices: FunctionPrices, global_batch: int) -> None:
        self.function_prices, self.global_batch = function_prices, global_batch
        self.calls, self.batch_only = (
            function_prices.model.calls,
            function_prices.model.batch_only_calls(),
        )
        counts = Counter(call.function for call in self.calls)
        self.repeated = {name for name, count in counts.items() if count > 1}
        every = function_prices.execution.recompute_every
        signatures = [
            (c.function, i % every == 0, i in self.batch_only) for i, c in enumerate(self.calls)
        ]
        firsts: dict[object, int] = {}
        self.first_equal = [
            firsts.setdefault(signature, i) for i, signature in enumerate(signatures)
        ]  # the first equal call
        self.micro_batchable = model_micro_batchable(function_prices, self.batch_only)

    def call_point(self, call: int, point: CallPoint) -> CallPoint:
        """The point of one call where layers are at `point`.

        Only repeated layers recompute, since most activations are theirs; chunked execution is for
        every call whose peak it lowers.
        """
        name, every = self.calls[call].function, self.function_prices.execution.recompute_every
        repeated = name in self.repeated and call % every == 0
        if not point.memory.chunked:
            return point if repeated else point._replace(memory=KEEP)
        usual = point._replace(memory=RECOMPUTE if repeated else KEEP)
        return point if self.peak_bytes(name, point) < self.peak_bytes(name, usual) else usual

    def peak_bytes(self, name: str, point: CallPoint) -> float:
        """Bytes at the peak of one call of a function; infinite where it has no price."""
        price = self.function_prices.call_price(name, point)
        if price is None:
            return inf
        largest = max(price.cost.forward.peak_bytes, price.cost.backward.peak_bytes)
        return largest + price.cost.all_saved_bytes

    def for_assignment(self, assignment: Assignment) -> list[CallPrice] | None:
        """The price of every call; None where a call cannot be sharded by its strategy."""
        if assignment.micro_batches > 1 and not self.micro_batchable:
            return None
        prices: list[CallPrice] = []
        for decision in assignment.decisions:
            point = assignment.point(decision)
            if not point.divides:
                return None
            uniform = self.uniform(point.replica, range(decision.first, decision.last))
            if uniform is None:
                return None
            prices += uniform
        return prices

    def uniform(
        self, replica: ReplicaPoint, members: Sequence[int] | None = None
    ) -> list[CallPrice] | None:
        """Prices of `members` (default: all calls) under one strategy; None where one has none."""
        first_equal = (
            self.first_equal if members is None else [self.first_equal[i] for i in members]
        )
        price_of: dict[int, CallPrice] = {}
        for first in dict.fromkeys(first_equal):
            point = self.call_point(first, replica.call_point(per_step=first in self.batch_only))
            price = self.function_prices.call_price(self.calls[first].function, point)
            if price is None:
                return None
            price_of[first] = price
        return [price_of[first] for first in first_equal]

    def seconds(self, prices: list[CallPrice]) -> list[float]:
        """Seconds of every call per micro-batch; 0 for batch-only calls (run once per step)."""
        distinct_costs = {id(e): e.cost for e in prices}
        seconds_of = {
            key: cost.forward.seconds + cost.backward.seconds
            for key, cost in distinct_costs.items()
        }
        return [0.0 if i in self.batch_only else seconds_of[id(e)] for i, e in enumerate(prices)]

    def lower_bound_seconds(self, point: RunPoint) -> float:
        """Lower bound of a point's step seconds, with at most its model chunks per stage.

        It assumes that nothing is recomputed and stages are balanced; 0 where there is no sharding.
        """
        stages = point.strategy.stages
        seconds = self.model_seconds(point.strategy.model_axes, point.samples_per_device)
        rounds = point.micro_batches + (stages - 1) / point.model_chunks
        processors = self.function_prices.cluster.device.ranks_per_processor
        return seconds / stages * rounds / processors

    @cached_method
    def model_seconds(self, model_axes: ModelAxes, samples: int) -> float:
        """Seconds of a micro-batch in all stages with everything kept; 0 without a sharding."""
        running = [i for i in range(len(self.calls)) if i not in self.batch_only]
        prices = self.uniform(ReplicaPoint(model_axes, samples, 1), running) or ()
        return sum(p.cost.forward.seconds + p.cost.backward.seconds for p in prices)


def model_micro_batchable(function_prices: FunctionPrices, once: frozenset[int]) -> bool:
    """Whether the batch can be split into micro-batches."""
    names = {c.function for i, c in enumerate(function_prices.model.calls) if i not in once}
    return function_prices.model.batch % 2 == 0 and all(
        function_prices.shardings.micro_batchable(name) for name in names
    )
