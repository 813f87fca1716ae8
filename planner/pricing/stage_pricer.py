"""Times and memory of pipeline stages under their batch axes.

Communication is hidden behind compute where the execution model says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.communication.overlap import exposed_exchanges, exposed_seconds
from ...cost_model.communication.step_bytes import accumulated_bytes, copied_bytes, updated_bytes
from ...cost_model.memory.host_states import host_bytes, host_step, host_step_seconds
from ...cost_model.memory.in_flight import InFlight, interleaved_in_flight, micro_batches_in_flight
from ...cost_model.memory.peak import memory_terms
from ...cost_model.memory.scheduled import ChunkBytes, scheduled_in_flight, waiting_beside
from ...cost_model.operators.roofline import stream_seconds
from ...cost_model.pipeline.scheduled import CLOSED_FORMS
from ...ir.cached import cached_method
from ...ir.compression.registry import COMPRESSED_OPTIMIZERS
from ...ir.plan.plan import Optimizer, Stage
from ...ir.plan.program import SMALL_BYTES
from ...ir.plan.schedules.registry import splits_backward
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import StageBytes, StrategyBytes
from ..compression.collectives import CollectiveCompressor, TrainedWeights
from ..question.candidate import RunPoint
from .call_prices import CallPrices
from .stage_cost import StageCost, StageMemory, StageTimes, StrategyCost


class StagePricer:
    """Prices stages of one model on one cluster for one optimizer."""

    def __init__(
        self,
        call_prices: CallPrices,
        item_bytes: int,
        optimizer: Optimizer,
        compressor: CollectiveCompressor | None,
    ) -> None:
        self.call_prices, self.optimizer, self.compressor = call_prices, optimizer, compressor
        function_prices = call_prices.function_prices
        self.cluster, self.execution = function_prices.cluster, function_prices.execution
        self.item_bytes = item_bytes
        self.gradient_scale = (self.execution.gradient_item_bytes or item_bytes) / item_bytes
        sizes = [p.type.bytes for p in function_prices.model.parameters if p.trainable]
        self.trainable_bytes = sum(sizes)
        self.small_share = sum(n for n in sizes if n < SMALL_BYTES) / max(self.trainable_bytes, 1)

    @cached_method
    def batch_axes(self, strategy: Strategy) -> BatchAxes:
        """Batch axes of a strategy, compressed where that pays off for an average stage."""
        programs = {}
        if self.compressor is not None:
            degree = strategy.stages * prod(n for r, n in strategy.axes if ROLES[r].operators)
            weights = TrainedWeights(
                self.trainable_bytes // degree,
                self.item_bytes,
                self.gradient_scale,
                self.small_share,
                max(1, len(self.call_prices.calls) // strategy.stages),
            )
            point = RunPoint(strategy, self.call_prices.global_batch, 1)
            step_seconds = self.call_prices.lower_bound_seconds(point)
            programs = self.compressor.choose(strategy, self.cluster, weights, step_seconds)
        return BatchAxes(
            strategy,
            self.cluster,
            self.gradient_scale,
            self.item_bytes,
            programs,
            COMPRESSED_OPTIMIZERS.get(self.optimizer.name),
            self.execution,
        )

    def in_flight(
        self,
        stages: int,
        number: int,
        micro_batches: int,
        chunks: Sequence[ChunkBytes] = (),
        schedule: str = "1f1b",
    ) -> InFlight:
        """Micro-batches whose activations stage `number` holds; `chunks`: bytes of each of its model
        chunks."""
        count, beside = max(len(chunks), 1), ()
        if schedule not in CLOSED_FORMS:
            peak = scheduled_in_flight(schedule, stages, number, micro_batches, chunks)
            if splits_backward(schedule):
                beside = waiting_beside(schedule, stages, number, micro_batches, chunks)
        elif count > 1:
            saved = [chunk.saved for chunk in chunks]
            peak = interleaved_in_flight(stages, number, micro_batches, saved)
        else:
            after = stages - 1 - number
            peak = micro_batches_in_flight(after, stages, micro_batches, self.execution.chunks)
        return InFlight(peak, micro_batches, count, beside)

    def parts(self, strategy_costs: Sequence[StrategyCost]) -> list[tuple[StageBytes, BatchAxes]]:
        """The bytes of a stage's calls of every strategy, with its batch axes."""
        return [(cost.bytes, self.batch_axes(strategy)) for strategy, cost in strategy_costs]

    def memory(self, strategy_costs: Sequence[StrategyCost], in_flight: InFlight) -> StageMemory:
        """Bytes by term of a stage with these micro-batches in flight."""
        terms = memory_terms(
            self.parts(strategy_costs),
            self.optimizer,
            self.execution,
            in_flight,
            self.cluster.device,
        )
        return StageMemory(terms)

    def stage(
        self, strategy_costs: Sequence[StrategyCost], in_flight: InFlight, reshard_seconds: float
    ) -> Stage:
        """A stage from its costs by strategy.

        `reshard_seconds` per micro-batch are spent between strategies, half of them in forward.
        """
        times = [
            self.times(cost, self.batch_axes(strategy), in_flight.micro_batches)
            for strategy, cost in strategy_costs
        ]
        splits = any(cost.weights_seconds for _, cost in strategy_costs)
        outgoing = max((cost.transfer for _, cost in strategy_costs), key=lambda c: c.bytes)
        shares = tuple(StrategyBytes(strategy, cost.bytes) for strategy, cost in strategy_costs)
        return Stage(
            strategy_costs[0].cost.model_chunks,
            float(in_flight.peak),
            sum(t.forward_seconds for t in times) + reshard_seconds / 2,
            sum(t.backward_seconds for t in times) + reshard_seconds / 2,
            sum(t.communication_seconds for t in times) + reshard_seconds,
            sum(t.per_step_seconds for t in times),
            outgoing.bytes,
            self.memory(strategy_costs, in_flight).terms,
            shares,
            reshard_seconds,
            host_bytes(self.parts(strategy_costs), self.optimizer, self.execution, in_flight),
            outgoing.large,
            sum(t.weights_seconds for t in times) if splits else 0.0,
            in_flight.beside,
        )

    def optimizer_seconds(self, weights: StageBytes, axes: BatchAxes) -> float:
        """Seconds of the optimizer's step, with copies to a host that it steps on and back."""
        optimizer, device = self.optimizer, self.cluster.device
        if optimizer.on_host:
            return host_step_seconds(host_step(weights, axes, optimizer), optimizer.name, device)
        return stream_seconds(optimizer.name, updated_bytes(axes, weights, optimizer), device)

    def times(self, cost: StageCost, axes: BatchAxes, micro_batches: int) -> StageTimes:
        """Seconds of one strategy's calls in a stage."""
        weights = cost.bytes
        exchanges = axes.stage_seconds(weights)
        forward, backward = cost.forward_seconds, cost.backward_seconds
        for_weights = cost.weights_seconds
        if micro_batches > 1:
            summed = accumulated_bytes(axes, weights.dense_bytes)
            adding = stream_seconds("accumulate", summed, self.cluster.device)
            backward, for_weights = backward + adding, for_weights + adding
        copies = [
            stream_seconds("copy", moved, self.cluster.device)
            for moved in copied_bytes(axes, weights)
        ]
        forward, backward = forward + copies[0], backward + copies[1]
        execution = self.execution.exchanging("parameter" in axes.sharded_kinds)
        added = exposed_exchanges(exchanges, forward, backward, execution, self.cluster)
        reduce = added.reduce
        if axes.late:
            reduce = exposed_seconds((forward + backward) * micro_batches, reduce)
        sync = reduce + added.update_gather + self.optimizer_seconds(weights, axes)
        return StageTimes(
            forward + added.forward,
            backward + added.backward,
            cost.communication_seconds + added.forward + added.backward,
            sync + cost.batch_only_seconds,
            for_weights + min(exchanges.scatter, added.backward),
        )
