"""Time and memory of one candidate: strategies, micro-batches and memory actions.

Generated programs do not overlap communication with compute yet, so it is not hidden here
either unless the execution model says so. Step time: the 1F1B pipeline, then gradient
synchronisation and the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.communication.stage_transfer import (
    StageTransfer,
    TransferPayload,
    boundary_links,
    price_transfers,
)
from ...cost_model.memory.peak import (
    InFlight,
    host_bytes,
    interleaved_in_flight,
    memory_terms,
    micro_batches_in_flight,
)
from ...cost_model.operators.roofline import stream_seconds
from ...cost_model.pipeline.closed_form import EdgeShares, pipeline_seconds
from ...cost_model.pipeline.overlap import exposed_seconds
from ...ir.compression.program import CompressionProgram
from ...ir.compression.registry import COMPRESSED_OPTIMIZERS
from ...ir.devices.cluster import Cluster, Link
from ...ir.model import Model
from ...ir.plan.memory_action import KEEP, MemoryAction
from ...ir.plan.plan import Optimizer, Stage
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import StrategyBytes
from ...ir.program import SMALL_BYTES
from ...ir.tensor import ITEM_BYTES
from ..candidate import (
    Candidate,
    Decision,
    StageCost,
    StagePartition,
    StrategyCost,
    end_chunk_shares,
    stage_model_chunks,
)
from ..compression.collectives import CollectiveCompressor
from .call_classes import equivalence_classes
from .call_prices import CallPrices
from .function_prices import CallPrice, FunctionPrices, ModelAxes
from .reshard_prices import ReshardPrices
from .stage_costs import StageAggregator
from .stage_partition import even, partition


class CandidatePricer:
    """Prices candidates of one model on one cluster for one global batch and optimizer."""

    def __init__(
        self,
        function_prices: FunctionPrices,
        global_batch: int,
        optimizer: Optimizer,
        compressor: CollectiveCompressor | None = None,
    ) -> None:
        self.function_prices, self.global_batch, self.optimizer = (
            function_prices,
            global_batch,
            optimizer,
        )
        self.model: Model = function_prices.model
        self.cluster: Cluster = function_prices.cluster
        self.calls = self.model.calls
        self.batch_only = self.model.batch_only_calls()
        self.call_prices = CallPrices(function_prices, global_batch)
        self.aggregator = StageAggregator(function_prices)
        self.call_classes = equivalence_classes(self.model, function_prices.batch_only_names)
        self.item_bytes = (
            ITEM_BYTES[self.model.parameters[0].type.dtype] if self.model.parameters else 4
        )
        self.gradient_scale = (
            function_prices.execution.gradient_item_bytes or self.item_bytes
        ) / self.item_bytes
        self.compressor = compressor
        sizes = [p.type.bytes for p in self.model.parameters if p.trainable]
        self.trainable_bytes = sum(sizes)
        self.small_share = sum(n for n in sizes if n < SMALL_BYTES) / max(self.trainable_bytes, 1)
        self.reshard_prices = ReshardPrices(function_prices)
        self.stage_links: dict[int, list[Link]] = {}
        self.known_batch_axes: dict[Strategy, BatchAxes] = {}
        self.transfer_programs: dict[
            tuple[ModelAxes, int, int, int], CompressionProgram | None
        ] = {}
        self.partitions: dict[
            tuple[ModelAxes, int, int, MemoryAction, int, int], StagePartition | None
        ] = {}

    def candidate(
        self, strategy: Strategy, micro_batches: int, memory: MemoryAction, chunks: int = 1
    ) -> Candidate | None:
        """The candidate of one strategy for all calls; `chunks`: model chunks per stage.

        None where the batch, a call or the stages cannot be split so.
        """
        degree = strategy.batch_degree()
        if self.global_batch % (degree * micro_batches) or (
            micro_batches > 1 and not self.call_prices.micro_batchable
        ):
            return None
        batch = self.global_batch // degree
        key = (strategy.model_axes, batch, micro_batches, memory, strategy.stages, chunks)
        if key not in self.partitions:
            self.partitions[key] = self.stage_partition(*key)
        partitioned = self.partitions[key]
        if partitioned is None:
            return None
        decision = Decision(0, len(self.calls), strategy, memory)
        return self.uniform_candidate((decision,), strategy, micro_batches, partitioned, chunks)

    def uniform_candidate(
        self,
        decisions: tuple[Decision, ...],
        strategy: Strategy,
        micro_batches: int,
        partitioned: StagePartition,
        chunks: int,
    ) -> Candidate:
        """The candidate of a stage partition under one strategy.

        Of equal stages the first has the most micro-batches in flight, so it alone is checked.
        """
        batch_axes, stages = self.batch_axes(strategy), len(partitioned.cost_index)
        first_stages = map(partitioned.cost_index.index, range(len(partitioned.stage_costs)))
        in_flight = [
            self.in_flight(stages, first, micro_batches, saved)
            for first, saved in zip(first_stages, partitioned.saved_bytes, strict=True)
        ]
        times = [
            self.stage_times(cost, batch_axes, micro_batches) for cost in partitioned.stage_costs
        ]
        busy = [times[index][0] + times[index][1] for index in partitioned.cost_index]
        peak = max(
            sum(
                amount
                for _, amount in self.stage_memory_terms(
                    [(strategy, cost)], micro_batches, micro_batches_in_flight
                )
            )
            for cost, micro_batches_in_flight in zip(
                partitioned.stage_costs, in_flight, strict=True
            )
        )
        syncs = [sync for *_, sync in times]
        return self.assemble(
            decisions,
            micro_batches,
            partitioned.bounds,
            chunks,
            busy,
            partitioned.send_seconds,
            partitioned.end_shares,
            syncs,
            peak,
        )

    def stages(self, candidate: Candidate) -> tuple[Stage, ...]:
        """The stages of a candidate, each with its times and its memory by term."""
        prices = self.call_prices.for_decisions(candidate.decisions, candidate.micro_batches)
        reshard_seconds = self.reshard_prices.seconds(candidate.decisions, candidate.micro_batches)
        assert prices is not None
        assert reshard_seconds is not None
        stages = self.mixed_stages(
            candidate.decisions,
            candidate.bounds,
            candidate.chunks,
            candidate.micro_batches,
            prices,
            reshard_seconds,
        )
        assert stages is not None
        return stages

    def links(self, stages: int) -> list[Link]:
        """The link from every stage to the next one."""
        if stages not in self.stage_links:
            self.stage_links[stages] = boundary_links(stages, self.cluster)
        return self.stage_links[stages]

    def transfers(
        self, outgoing: Sequence[TransferPayload], program: CompressionProgram | None
    ) -> list[StageTransfer]:
        """The transfer of every stage to the next one."""
        return price_transfers(outgoing, self.links(len(outgoing)), program, self.cluster.device)

    def transfer_program(
        self, model_axes: ModelAxes, batch: int, micro_batches: int, stages: int
    ) -> CompressionProgram | None:
        """Compression of stage transfers that pays off over a median boundary, if one does."""
        key = model_axes, batch, micro_batches, stages
        if stages == 1 or not self.function_prices.activations.sends:
            return None
        if key not in self.transfer_programs:
            micro_batch_samples, rounds = batch // micro_batches, micro_batches + stages - 1
            transfers = [
                self.aggregator.transfer(at, micro_batch_samples, model_axes)
                for at in range(1, len(self.calls))
            ]
            typical = sorted(transfers, key=lambda c: c.bytes)[len(transfers) // 2]
            slowest = min(self.links(stages)[:-1], key=lambda x: x.bandwidth_bytes_per_second)
            prices = self.call_prices.uniform(model_axes, batch, micro_batches, KEEP)
            compute_seconds = (
                sum(self.call_prices.seconds(prices)) / stages * rounds if prices else 0.0
            )
            self.transfer_programs[key] = self.function_prices.activations.stage_transfer_program(
                typical, slowest, self.cluster.device, rounds, compute_seconds
            )
        return self.transfer_programs[key]

    def in_flight(
        self, stages: int, number: int, micro_batches: int, saved: Sequence[float] = ()
    ) -> float:
        """Peak number of micro-batches whose activations stage `number` holds.

        `saved`: bytes saved by each of its model chunks; empty without interleaving.
        """
        if len(saved) > 1:
            return interleaved_in_flight(stages, number, micro_batches, saved)
        after, chunks = stages - 1 - number, self.function_prices.execution.chunks
        return micro_batches_in_flight(after, stages, micro_batches, chunks)

    def batch_axes(self, strategy: Strategy) -> BatchAxes:
        """Batch axes of a strategy, with the compression chosen for them."""
        if strategy not in self.known_batch_axes:
            self.known_batch_axes[strategy] = self.compressed_batch_axes(strategy)
        return self.known_batch_axes[strategy]

    def compressed_batch_axes(self, strategy: Strategy) -> BatchAxes:
        """Batch axes of a strategy, compressed where that pays off for an average stage."""
        item, scale, programs = self.item_bytes, self.gradient_scale, {}
        compressed_optimizer = COMPRESSED_OPTIMIZERS.get(self.optimizer.name)
        if self.compressor is not None:
            degree = strategy.stages * prod(n for r, n in strategy.axes if ROLES[r].operators)
            step_seconds = self.call_prices.lower_bound_seconds(strategy, 1, 1)
            programs = self.compressor.choose(
                strategy,
                self.cluster,
                scale,
                item,
                self.trainable_bytes // degree,
                self.small_share,
                max(1, len(self.calls) // strategy.stages),
                step_seconds,
            )
        return BatchAxes(strategy, self.cluster, scale, item, programs, compressed_optimizer)

    def mixed(
        self,
        decisions: tuple[Decision, ...],
        bounds: Sequence[int],
        micro_batches: int,
        chunks: int = 1,
    ) -> Candidate | None:
        """The candidate of different decisions for different calls, with stages at `bounds`.

        None where a call cannot be sharded so or a value cannot be resharded.
        """
        prices = self.call_prices.for_decisions(decisions, micro_batches)
        if prices is None:
            return None
        reshard_seconds = self.reshard_prices.seconds(decisions, micro_batches)
        if reshard_seconds is None or not self.ties_agree(decisions):
            return None
        stages = self.mixed_stages(
            decisions, bounds, chunks, micro_batches, prices, reshard_seconds
        )
        if stages is None:
            return None
        transfers = self.transfers(
            [TransferPayload(s.transfer_bytes, s.compressible) for s in stages],
            self.transfer_program_of(decisions, micro_batches),
        )
        return self.assemble(
            decisions,
            micro_batches,
            tuple(bounds),
            chunks,
            [s.forward_seconds + s.backward_seconds for s in stages],
            [transfer.seconds for transfer in transfers],
            end_chunk_shares(self.call_prices.seconds(prices), [s.model_chunks for s in stages]),
            [s.sync_seconds for s in stages],
            max(s.peak_bytes for s in stages),
        )

    def mixed_stages(
        self,
        decisions: tuple[Decision, ...],
        bounds: Sequence[int],
        chunks: int,
        micro_batches: int,
        prices: list[CallPrice],
        reshard_seconds: Sequence[float],
    ) -> tuple[Stage, ...] | None:
        """The stages of these decisions; None where a stage has no work."""
        stages, program = [], self.transfer_program_of(decisions, micro_batches)
        chunks_per_stage = stage_model_chunks(bounds, chunks)
        for number, chunk_spans in enumerate(chunks_per_stage):
            calls_by_strategy: dict[Strategy, list[int]] = {}
            for (first, last), d in product(chunk_spans, decisions):
                calls = range(max(first, d.first), min(last, d.last))
                calls_by_strategy.setdefault(d.strategy, []).extend(calls)
            strategy_costs = [
                (
                    strategy,
                    self.aggregator.cost(
                        prices,
                        chunk_spans,
                        strategy.model_axes,
                        self.global_batch // strategy.batch_degree() // micro_batches,
                        calls,
                    ).encoded(program),
                )
                for strategy, calls in calls_by_strategy.items()
                if any(i not in self.batch_only for i in calls)
            ]
            if not strategy_costs:
                return None
            saved = self.aggregator.saved_bytes(prices, chunk_spans)
            in_flight = self.in_flight(len(chunks_per_stage), number, micro_batches, saved)
            stage_reshard_seconds = sum(
                sum(reshard_seconds[first:last]) for first, last in chunk_spans
            )
            stages.append(
                self.stage(strategy_costs, micro_batches, in_flight, stage_reshard_seconds)
            )
        return tuple(stages)

    def transfer_program_of(
        self, decisions: Sequence[Decision], micro_batches: int
    ) -> CompressionProgram | None:
        """Compression of stage transfers: all stages use the one chosen for the first strategy."""
        first = decisions[0].strategy
        batch = self.global_batch // first.batch_degree()
        return self.transfer_program(first.model_axes, batch, micro_batches, first.stages)

    def mixed_balanced(
        self, decisions: tuple[Decision, ...], micro_batches: int, chunks: int = 1
    ) -> Candidate | None:
        """The candidate of different decisions for different calls, in balanced model chunks."""
        prices = self.call_prices.for_decisions(decisions, micro_batches)
        if prices is None:
            return None
        bounds = partition(self.call_prices.seconds(prices), decisions[0].strategy.stages * chunks)
        return None if bounds is None else self.mixed(decisions, bounds, micro_batches, chunks)

    def ties_agree(self, decisions: tuple[Decision, ...]) -> bool:
        """Whether calls that share a parameter have one strategy."""
        strategy_of: dict[str, Strategy] = {}
        return all(
            strategy_of.setdefault(name, d.strategy) == d.strategy
            for d in decisions
            for i in range(d.first, d.last)
            if self.aggregator.shares_parameters[i]
            for name in self.calls[i].parameters
        )

    def stage_partition(
        self,
        model_axes: ModelAxes,
        batch: int,
        micro_batches: int,
        memory: MemoryAction,
        stages: int,
        chunks: int,
    ) -> StagePartition | None:
        """Calls partitioned into stages, with costs that hold for every role of the batch axes."""
        prices = self.call_prices.uniform(model_axes, batch, micro_batches, memory)
        if prices is None:
            return None
        seconds = self.call_prices.seconds(prices)
        if self.function_prices.execution.even_layers:
            bounds = even([c.function in self.call_prices.repeated for c in self.calls], stages)
        else:
            bounds = partition(seconds, stages * chunks)
        if bounds is None:
            return None
        chunks_per_stage, program = (
            stage_model_chunks(bounds, chunks),
            self.transfer_program(model_axes, batch, micro_batches, stages),
        )
        codes: dict[object, int] = {}
        call_keys = [
            codes.setdefault((number, id(price)), len(codes))
            for number, price in zip(self.call_classes, prices, strict=True)
        ]
        index_of: dict[object, int] = {}
        costs: list[StageCost] = []
        saved = []
        cost_index = []
        for chunk_spans in chunks_per_stage:
            signature = tuple(
                (
                    tuple(call_keys[first:last]),
                    self.aggregator.boundary_bytes[last],
                    last == len(call_keys),
                )
                for first, last in chunk_spans
            )
            if signature not in index_of:
                index_of[signature] = len(index_of)
                members = [i for first, last in chunk_spans for i in range(first, last)]
                saved.append(self.aggregator.saved_bytes(prices, chunk_spans))
                cost = self.aggregator.cost(
                    prices, chunk_spans, model_axes, batch // micro_batches, members
                )
                costs.append(cost.encoded(program))
            cost_index.append(index_of[signature])
        send_seconds = [
            transfer.seconds
            for transfer in self.transfers([costs[k].transfer for k in cost_index], program)
        ]
        ends = end_chunk_shares(seconds, chunks_per_stage)
        return StagePartition(
            tuple(bounds), tuple(costs), tuple(cost_index), tuple(send_seconds), ends, tuple(saved)
        )

    def assemble(
        self,
        decisions: tuple[Decision, ...],
        micro_batches: int,
        bounds: tuple[int, ...],
        chunks: int,
        busy: list[float],
        sends: Sequence[float],
        ends: EdgeShares,
        syncs: list[float],
        peak: int,
    ) -> Candidate:
        """The candidate whose stages take `busy` seconds per micro-batch."""
        execution = self.function_prices.execution
        pipeline = pipeline_seconds(
            busy,
            sends,
            micro_batches,
            max(chunks, execution.chunks),
            execution.overlap,
            self.cluster.device.ranks_per_processor,
            ends if chunks > 1 else (),
        )
        step = pipeline + max(syncs)
        bubble = 1 - micro_batches * sum(busy) / (len(busy) * pipeline) if pipeline else 0.0
        return Candidate(decisions, micro_batches, bounds, step, bubble, peak, chunks)

    def stage_memory_terms(
        self, strategy_costs: Sequence[StrategyCost], micro_batches: int, in_flight: float
    ) -> tuple[tuple[str, int], ...]:
        """Bytes by term of a stage with this many micro-batches in flight."""
        return memory_terms(
            [
                (cost.bytes(self.item_bytes), self.batch_axes(strategy))
                for strategy, cost in strategy_costs
            ],
            self.optimizer,
            self.function_prices.execution,
            InFlight(in_flight, micro_batches, len(strategy_costs[0][1].model_chunks)),
            self.cluster.device,
        )

    def stage(
        self,
        strategy_costs: Sequence[StrategyCost],
        micro_batches: int,
        in_flight: float,
        reshard_seconds: float,
    ) -> Stage:
        """A stage from its costs by strategy.

        `reshard_seconds` per micro-batch are spent between strategies, half of them in forward.
        """
        times = [
            self.stage_times(cost, self.batch_axes(s), micro_batches) for s, cost in strategy_costs
        ]
        forward, backward, communication, sync = (
            sum(column) for column in zip(*times, strict=True)
        )
        outgoing = max((cost.transfer for _, cost in strategy_costs), key=lambda c: c.bytes)
        shares = tuple(
            StrategyBytes(strategy, cost.bytes(self.item_bytes))
            for strategy, cost in strategy_costs
        )
        return Stage(
            strategy_costs[0][1].model_chunks,
            float(in_flight),
            forward + reshard_seconds / 2,
            backward + reshard_seconds / 2,
            communication + reshard_seconds,
            sync,
            outgoing.bytes,
            self.stage_memory_terms(strategy_costs, micro_batches, in_flight),
            shares,
            reshard_seconds,
            host_bytes([s.bytes for s in shares], in_flight),
            outgoing.large,
        )

    def stage_times(
        self, cost: StageCost, axes: BatchAxes, micro_batches: int
    ) -> tuple[float, float, float, float]:
        """Seconds of one strategy's calls: forward and backward per micro-batch, communication in
        both, and synchronisation per step.
        """
        execution = self.function_prices.execution
        small = cost.small_tensor_bytes / max(cost.trained_bytes, 1)
        gather = sum(
            n * axes.gather_seconds(weight_bytes, small)
            for weight_bytes, n in cost.call_weight_bytes
        )
        scatter = sum(
            n * axes.scatter_seconds(weight_bytes, small)
            for weight_bytes, n in cost.call_weight_bytes
        )
        reduce = axes.reduce_seconds(cost.trained_bytes, cost.partial_gradient_bytes, small)
        parameter_return = axes.update_gather_seconds(cost.trained_bytes, small)
        forward, backward = cost.forward_seconds, cost.backward_seconds
        backward += (
            self.accumulation_seconds(cost.trained_bytes, axes) if micro_batches > 1 else 0.0
        )
        communication = [gather, gather + scatter, reduce, parameter_return]
        if execution.overlap:
            work = (forward, backward, backward, forward)
            communication = [
                exposed_seconds(c, s) for c, s in zip(work, communication, strict=True)
            ]
        sync = (
            communication[2] + communication[3] + self.optimizer_seconds(cost.trained_bytes, axes)
        )
        communication_seconds = cost.communication_seconds + communication[0] + communication[1]
        return (
            forward + communication[0],
            backward + communication[1],
            communication_seconds,
            sync + cost.batch_only_seconds,
        )

    def accumulation_seconds(self, weight_bytes: int, axes: BatchAxes) -> float:
        """Seconds to add a micro-batch's gradients to the accumulated ones."""
        moved_bytes = 2 * weight_bytes * self.gradient_scale * axes.local_fraction("gradient")
        return stream_seconds("accumulate", moved_bytes, self.cluster.device)

    def optimizer_seconds(self, weight_bytes: int, axes: BatchAxes) -> float:
        """Seconds of the optimizer's update, bound by memory bandwidth."""
        moved_bytes = axes.local_bytes(weight_bytes * (2 + self.optimizer.states), "optimizer")
        return stream_seconds(self.optimizer.name, moved_bytes * 2, self.cluster.device)
