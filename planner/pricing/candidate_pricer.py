"""Time and memory of one candidate: strategies, micro-batches and memory actions.

Step time: the 1F1B pipeline, then gradient synchronisation and the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import inf

from ...cost_model.communication.stage_transfer import TransferPayload
from ...cost_model.memory.in_flight import undominated
from ...cost_model.memory.scheduled import ChunkBytes
from ...cost_model.pipeline.closed_form import pipeline_seconds
from ...cost_model.pipeline.scheduled import (
    CLOSED_FORMS,
    least_scheduled_seconds,
    scheduled_seconds,
)
from ...ir.cached import cached_method
from ...ir.plan.plan import Optimizer, Span, Stage
from ...ir.plan.schedules.registry import chunk_map
from ...ir.plan.strategy import Strategy
from ..compression.collectives import CollectiveCompressor
from ..question.candidate import Assignment, Candidate, ReplicaPoint, RunPoint
from .call_classes import equivalence_classes
from .call_prices import CallPrices
from .function_prices import CallPrice, FunctionPrices
from .reshard_prices import ReshardPrices
from .stage_cost import (
    PipelineLoad,
    StageCost,
    StagePartition,
    StrategyCost,
    end_chunk_shares,
    model_chunk_count,
    stage_model_chunks,
)
from .stage_costs import StageAggregator
from .stage_partition import behind_share, even, partition
from .stage_pricer import StagePricer
from .transfer_prices import TransferPrices


class CandidatePricer:
    """Prices candidates of one model on one cluster for one global batch and optimizer."""

    def __init__(
        self,
        function_prices: FunctionPrices,
        global_batch: int,
        optimizer: Optimizer,
        compressor: CollectiveCompressor | None = None,
    ) -> None:
        self.function_prices, self.global_batch = function_prices, global_batch
        self.optimizer = optimizer
        self.model, self.cluster = function_prices.model, function_prices.cluster
        self.calls, self.batch_only = self.model.calls, self.model.batch_only_calls()
        self.call_prices = CallPrices(function_prices, global_batch)
        self.aggregator = StageAggregator(function_prices)
        self.transfer_prices = TransferPrices(self.call_prices, self.aggregator.boundaries)
        self.stage_pricer = StagePricer(
            self.call_prices, self.aggregator.item_bytes, optimizer, compressor
        )
        self.call_classes = equivalence_classes(
            function_prices.flow.graph, function_prices.values.batch_only_names
        )
        self.reshard_prices = ReshardPrices(function_prices)

    def point(self, strategy: Strategy, micro_batches: int) -> RunPoint:
        """The point of a strategy with everything kept and one model chunk per stage."""
        return RunPoint(strategy, self.global_batch, micro_batches)

    @cached_method
    def candidate(self, point: RunPoint) -> Candidate | None:
        """The candidate of one strategy for all calls.

        None where the batch, a call or the stages cannot be split so.
        """
        if not point.divides or (point.micro_batches > 1 and not self.call_prices.micro_batchable):
            return None
        partitioned = self.partition(point.replica)
        return None if partitioned is None else self.uniform_candidate(point, partitioned)

    def uniform_candidate(self, point: RunPoint, partitioned: StagePartition) -> Candidate:
        """The candidate of a stage partition under one strategy."""
        return self.assemble(
            Assignment.uniform(point, len(self.calls)),
            partitioned.bounds,
            self.uniform_load(point, partitioned),
            partial(self.uniform_peak_bytes, point, partitioned),
        )

    def uniform_peak_bytes(self, point: RunPoint, partitioned: StagePartition) -> int:
        """Bytes of the fullest device of a stage partition under one strategy.

        Of equal stages the first has the most micro-batches in flight, where backward runs at once, so
        it alone is checked.
        """
        pricer, micro_batches = self.stage_pricer, point.micro_batches
        stages = len(partitioned.cost_index)
        peak_bytes = 0
        for index, cost in enumerate(partitioned.stage_costs):
            chunks, schedule = partitioned.saved_bytes[index], point.schedule
            equal = [s for s, other in enumerate(partitioned.cost_index) if other == index]
            part = StrategyCost(point.strategy, cost)
            for in_flight in undominated(
                pricer.in_flight(stages, stage, micro_batches, chunks, schedule)
                for stage in (equal[:1] if schedule in CLOSED_FORMS else equal)
            ):
                peak_bytes = max(peak_bytes, pricer.memory([part], in_flight).peak_bytes)
        return peak_bytes

    def uniform_load(self, point: RunPoint, partitioned: StagePartition) -> PipelineLoad:
        """What the stages of a partition take under one strategy."""
        axes = self.stage_pricer.batch_axes(point.strategy)
        times = [
            self.stage_pricer.times(cost, axes, point.micro_batches)
            for cost in partitioned.stage_costs
        ]
        by_stage = [times[index] for index in partitioned.cost_index]
        return PipelineLoad(
            tuple(stage_times.busy_seconds for stage_times in by_stage),
            partitioned.send_seconds,
            partitioned.end_shares,
            tuple(cost_times.per_step_seconds for cost_times in times),
            tuple(stage_times.weights_seconds for stage_times in by_stage),
            tuple(stage_times.forward_seconds for stage_times in by_stage),
        )

    def least_seconds(self, point: RunPoint) -> float:
        """A lower bound of a point's step seconds that simulates no schedule; infinite where it has no
        candidate."""
        partitioned = self.partition(point.replica)
        if partitioned is None:
            return inf
        if point.schedule in CLOSED_FORMS:
            return self.step_seconds(point)
        load = self.uniform_load(point, partitioned)
        pipeline = least_scheduled_seconds(
            point.schedule,
            load.work(point.model_chunks),
            load.send_seconds,
            point.micro_batches,
            self.cluster.device.ranks_per_processor,
        )
        return pipeline + max(load.per_step_seconds)

    def step_seconds(self, point: RunPoint) -> float:
        """Step seconds of a point; infinite where it has no candidate."""
        candidate = self.candidate(point)
        return inf if candidate is None else candidate.step_seconds

    def assemble(
        self,
        assignment: Assignment,
        bounds: tuple[int, ...],
        load: PipelineLoad,
        measure_peak: Callable[[], int],
    ) -> Candidate:
        """The candidate whose stages take this load."""
        pipeline, busy = self.pipeline_seconds(assignment, load), load.busy_seconds
        step_seconds = pipeline + max(load.per_step_seconds)
        placed = chunk_map(assignment.schedule, len(busy), assignment.model_chunks)
        ran = placed.passes(assignment.micro_batches) * sum(busy)
        bubble = 1 - ran / (len(busy) * pipeline) if pipeline else 0.0
        return Candidate(assignment, bounds, step_seconds, bubble, measure_peak)

    def pipeline_seconds(self, assignment: Assignment, load: PipelineLoad) -> float:
        """Seconds of all micro-batches of a step."""
        run = assignment.schedule, assignment.micro_batches, assignment.model_chunks
        return self.loaded_seconds(*run, load._replace(per_step_seconds=()))

    @cached_method
    def loaded_seconds(
        self, schedule: str, micro_batches: int, chunks: int, load: PipelineLoad
    ) -> float:
        """The same for a load without its seconds per step, which strategies that differ in what their
        optimizers shard have in common."""
        execution, shared = self.function_prices.execution, self.cluster.device.ranks_per_processor
        if schedule in CLOSED_FORMS:
            return pipeline_seconds(
                load.busy_seconds,
                load.send_seconds,
                micro_batches,
                max(chunks, execution.chunks),
                "transfers" in execution.overlaps,
                shared,
                load.end_shares if chunks > 1 else (),
            )
        return scheduled_seconds(
            schedule, load.work(chunks), load.send_seconds, micro_batches, shared
        )

    @cached_method
    def partition(self, replica: ReplicaPoint) -> StagePartition | None:
        """Calls partitioned into stages, with costs that hold for every role of the batch axes."""
        prices = self.call_prices.uniform(replica)
        if prices is None:
            return None
        bounds = self.balanced_bounds(prices, replica)
        if bounds is None:
            return None
        spans_by_stage = stage_model_chunks(bounds, replica.model_chunks, replica.schedule)
        program, calls = self.transfer_prices.program(replica), self.distinct_calls(prices)
        index_of: dict[object, int] = {}
        costs: list[StageCost] = []
        saved: list[tuple[ChunkBytes, ...]] = []
        cost_index: list[int] = []
        for spans in spans_by_stage:
            signature = tuple(
                (
                    tuple(calls[first:last]),
                    self.aggregator.boundaries.bytes[last],
                    last == len(calls),
                )
                for first, last in spans
            )
            if signature not in index_of:
                index_of[signature] = len(index_of)
                members = [i for first, last in sorted(spans) for i in range(first, last)]
                saved.append(self.aggregator.saved_bytes(prices, spans))
                cost = self.aggregator.cost(prices, spans, replica, members)
                costs.append(cost.encoded(program))
            cost_index.append(index_of[signature])
        return StagePartition(
            bounds,
            tuple(costs),
            tuple(cost_index),
            self.transfer_prices.seconds([costs[k].transfer for k in cost_index], program),
            end_chunk_shares(self.call_prices.seconds(prices), spans_by_stage),
            tuple(saved),
        )

    def balanced_bounds(
        self, prices: list[CallPrice], replica: ReplicaPoint
    ) -> tuple[int, ...] | None:
        """First call of every model chunk, then the number of calls; None with too few calls."""
        execution, bounds = self.function_prices.execution, None
        if execution.even_layers:
            repeated = [c.function in self.call_prices.repeated for c in self.calls]
            bounds = even(repeated, replica.stages)
            return None if bounds is None else tuple(bounds)
        chunks = model_chunk_count(replica)
        if execution.fills_stages:
            bounds = behind_share([price.cost.forward.flops for price in prices], chunks)
        bounds = bounds or partition(self.call_prices.seconds(prices), chunks)
        return None if bounds is None else tuple(bounds)

    def distinct_calls(self, prices: list[CallPrice]) -> list[int]:
        """A number for every call, equal for calls of one class and price."""
        numbers: dict[tuple[int, int], int] = {}
        return [
            numbers.setdefault((call_class, id(price)), len(numbers))
            for call_class, price in zip(self.call_classes, prices, strict=True)
        ]

    def stages(self, candidate: Candidate) -> tuple[Stage, ...]:
        """The stages of a candidate, each with its times and its memory by term."""
        prices = self.call_prices.for_assignment(candidate.assignment)
        reshard_seconds = self.reshard_prices.seconds(candidate.assignment)
        assert prices is not None
        assert reshard_seconds is not None
        stages = self.mixed_stages(candidate.assignment, candidate.bounds, prices, reshard_seconds)
        assert stages is not None
        return stages

    def mixed(self, assignment: Assignment, bounds: Sequence[int]) -> Candidate | None:
        """The candidate of different decisions for different calls, with stages at `bounds`.

        None where a call cannot be sharded so or a value cannot be resharded.
        """
        prices = self.call_prices.for_assignment(assignment)
        if prices is None:
            return None
        reshard_seconds = self.reshard_prices.seconds(assignment)
        if reshard_seconds is None or not self.ties_agree(assignment):
            return None
        stages = self.mixed_stages(assignment, bounds, prices, reshard_seconds)
        if stages is None:
            return None
        payloads = [TransferPayload(s.transfer_bytes, s.compressible) for s in stages]
        program = self.transfer_prices.program(assignment.first_point.replica)
        load = PipelineLoad(
            tuple(s.forward_seconds + s.backward_seconds for s in stages),
            self.transfer_prices.seconds(payloads, program),
            end_chunk_shares(self.call_prices.seconds(prices), [s.model_chunks for s in stages]),
            tuple(s.sync_seconds for s in stages),
            tuple(s.weights_seconds for s in stages),
            tuple(s.forward_seconds for s in stages),
        )
        peak_bytes = max(s.peak_bytes for s in stages)
        return self.assemble(assignment, tuple(bounds), load, lambda: peak_bytes)

    def balanced(self, assignment: Assignment) -> Candidate | None:
        """The candidate of an assignment in balanced model chunks."""
        if len(assignment.decisions) > 1:
            return self.mixed_balanced(assignment)
        return self.candidate(assignment.first_point)

    def mixed_balanced(self, assignment: Assignment) -> Candidate | None:
        """The candidate of different decisions for different calls, in balanced model chunks."""
        prices = self.call_prices.for_assignment(assignment)
        if prices is None:
            return None
        seconds, replica = self.call_prices.seconds(prices), assignment.first_point.replica
        bounds = partition(seconds, model_chunk_count(replica))
        return None if bounds is None else self.mixed(assignment, bounds)

    def mixed_stages(
        self,
        assignment: Assignment,
        bounds: Sequence[int],
        prices: list[CallPrice],
        reshard_seconds: Sequence[float],
    ) -> tuple[Stage, ...] | None:
        """The stages of these decisions; None where a stage has no work."""
        spans_by_stage = stage_model_chunks(bounds, assignment.model_chunks, assignment.schedule)
        count = len(spans_by_stage)
        stages = [
            self.mixed_stage(assignment, (number, count), spans, prices, reshard_seconds)
            for number, spans in enumerate(spans_by_stage)
        ]
        with_work = tuple(stage for stage in stages if stage is not None)
        return with_work if len(with_work) == count else None

    def mixed_stage(
        self,
        assignment: Assignment,
        place: tuple[int, int],
        spans: tuple[Span, ...],
        prices: list[CallPrice],
        reshard_seconds: Sequence[float],
    ) -> Stage | None:
        """One stage of these decisions, `place` its number and how many there are; None without work."""
        strategy_costs = self.costs_by_strategy(assignment, spans, prices)
        if not strategy_costs:
            return None
        number, count = place
        saved = self.aggregator.saved_bytes(prices, spans)
        in_flight = self.stage_pricer.in_flight(
            count, number, assignment.micro_batches, saved, assignment.schedule
        )
        resharding = sum(sum(reshard_seconds[first:last]) for first, last in spans)
        return self.stage_pricer.stage(strategy_costs, in_flight, resharding)

    def costs_by_strategy(
        self, assignment: Assignment, spans: tuple[Span, ...], prices: list[CallPrice]
    ) -> list[StrategyCost]:
        """Cost of a stage's calls of every strategy that has work for each micro-batch."""
        calls_of: dict[RunPoint, list[int]] = {}
        points: dict[Strategy, RunPoint] = {}
        for (first, last), d in product(sorted(spans), assignment.decisions):
            point = points.setdefault(d.strategy, assignment.point(d))
            calls_of.setdefault(point, []).extend(range(max(first, d.first), min(last, d.last)))
        program = self.transfer_prices.program(assignment.first_point.replica)
        return [
            StrategyCost(
                point.strategy,
                self.aggregator.cost(prices, spans, point.replica, calls).encoded(program),
            )
            for point, calls in calls_of.items()
            if any(i not in self.batch_only for i in calls)
        ]

    def ties_agree(self, assignment: Assignment) -> bool:
        """Whether calls that share a parameter have one strategy."""
        strategy_of: dict[str, Strategy] = {}
        return all(
            strategy_of.setdefault(name, d.strategy) == d.strategy
            for d in assignment.decisions
            for i in range(d.first, d.last)
            if self.aggregator.shares_parameters[i]
            for name in self.calls[i].parameters
        )
