"""Adds up the calls of a stage: seconds, bytes of weights and saved values, bytes sent onwards.

Parameters and values that several calls share are counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from ...cost_model.communication.stage_transfer import TransferPayload
from ...cost_model.memory.scheduled import ChunkBytes
from ...cost_model.operators.function_cost import FunctionCost
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.plan.plan import Span
from ...ir.plan.program import SMALL_BYTES
from ...ir.plan.schedules.registry import is_mirrored
from ...ir.plan.workload import PeakPoint, StageBytes
from ..question.candidate import ReplicaPoint
from .boundary_transfers import BoundaryTransfers
from .function_prices import CallPrice, FunctionPrices
from .live_bytes import forward_points, peak_points
from .stage_cost import StageCost


class WeightBytes(NamedTuple):
    """Bytes of the parameters of a stage's calls per device, shared ones counted once.

    `trained`: that the optimizer updates, `small_tensors` of them in small tensors;
    `trained_per_call`: not shared between calls; `unread`: of `trained`, by call, what is read after it;
    `partial_gradients`: to all-reduce, by model axis;
    `sparse`: of `trained`, tables with gradients of rows; `rows`: those that the batch reads;
    `replicas`: beside `all`, of experts; `tied`: of `trained`, read by other stages as well.
    """

    all: int
    trained: int
    small_tensors: int
    trained_per_call: list[int]
    unread: list[int]
    partial_gradients: dict[str, int]
    sparse: int
    rows: int
    replicas: int
    tied: int


class BatchSliceBytes(NamedTuple):
    """Bytes per micro-batch of slices of batch-only values, and the part that is model input."""

    all: int
    inputs: int


def parted_bytes(costs: Iterable[FunctionCost]) -> int:
    """Bytes that calls hold between the parts of their backward."""
    return sum(cost.parts.saved_bytes for cost in costs if cost.parts is not None)


class StageAggregator:
    """Adds up calls of one model, given the price of every call."""

    def __init__(self, function_prices: FunctionPrices) -> None:
        self.function_prices, self.model = function_prices, function_prices.model
        self.calls, self.batch_only = self.model.calls, self.model.batch_only_calls()
        self.boundaries = BoundaryTransfers(function_prices)
        parameters = self.model.parameters
        self.item_bytes = narrowest_item_bytes(parameters)
        sizes = {p.name: p.type.bytes for p in parameters}
        self.parameters = [{n: sizes[n] for n in call.parameters} for call in self.calls]
        trained = {p.name for p in parameters if p.trainable}
        self.trained_shares = [
            sum(size for name, size in parameter_bytes.items() if name in trained)
            / max(sum(parameter_bytes.values()), 1)
            for parameter_bytes in self.parameters
        ]
        self.small_shares = [
            sum(
                size
                for name, size in parameter_bytes.items()
                if name in trained and size < SMALL_BYTES
            )
            / max(sum(parameter_bytes.values()), 1)
            for parameter_bytes in self.parameters
        ]
        users: dict[str, list[int]] = {}
        for i, call in enumerate(self.calls):
            for name in dict.fromkeys(call.parameters):
                users.setdefault(name, []).append(i)
        self.shared_users = {name: at for name, at in users.items() if len(at) > 1}
        self.shares_parameters = [
            any(name in self.shared_users for name in call.parameters) for call in self.calls
        ]

    def cost(
        self,
        prices: list[CallPrice],
        model_chunks: tuple[Span, ...],
        replica: ReplicaPoint,
        members: Sequence[int],
    ) -> StageCost:
        """Cost of the calls `members` of a stage, all under one strategy."""
        running = [i for i in members if i not in self.batch_only]
        calls = [prices[i].cost for i in running]
        first_part = running[:1] == self.calls_per_micro_batch(model_chunks)[:1]
        once = [prices[i].cost for i in self.batch_only] if first_part else []
        leaving = self.boundaries.largest(
            [last for _, last in model_chunks if last - 1 in members], replica
        )
        entering = self.boundaries.largest(
            [first for first, _ in model_chunks if first in members], replica
        )
        return StageCost(
            model_chunks=model_chunks,
            forward_seconds=sum(c.forward.seconds for c in calls),
            backward_seconds=sum(c.backward.seconds for c in calls),
            communication_seconds=sum(
                c.forward.communication_seconds + c.backward.communication_seconds for c in calls
            ),
            batch_only_seconds=sum(c.forward.seconds for c in once),
            bytes=self.stage_bytes(
                prices, running, once, replica, (leaving, entering), model_chunks
            ),
            weights_seconds=sum(c.parts.weights_seconds for c in calls if c.parts is not None),
            outgoing_compressible=leaving.large,
            incoming_compressible=entering.large,
        )

    def stage_bytes(
        self,
        prices: list[CallPrice],
        running: list[int],
        once: list[FunctionCost],
        replica: ReplicaPoint,
        transfers: tuple[TransferPayload, TransferPayload],
        model_chunks: tuple[Span, ...],
    ) -> StageBytes:
        """Bytes of the calls `running` and of those that run `once` per step.

        `transfers`: to the next stage and from the one before.
        """
        calls = [prices[i].cost for i in running]
        weights = self.weights(prices, running, replica, model_chunks)
        leaving, entering = transfers
        batch_slices = self.batch_slice_bytes(running, calls, prices)
        return StageBytes(
            weight_bytes=weights.all,
            trained_bytes=weights.trained,
            call_weight_bytes=tuple(Counter(c.state_tensor_bytes for c in calls).items()),
            saved_bytes=sum(c.saved_bytes for c in calls)
            + self.saved_between_bytes(running, calls),
            last_saved_bytes=self.last_saved_bytes(prices, running),
            peak_points=self.peak_points(running, calls, weights.trained_per_call, model_chunks),
            batch_only_bytes=sum(
                c.saved_bytes + c.forward.peak_bytes + sum(c.boundary_bytes[0]) for c in once
            ),
            batch_copy_bytes=batch_slices.all,
            batch_input_bytes=batch_slices.inputs,
            outgoing_bytes=leaving.bytes,
            incoming_bytes=entering.bytes,
            item_bytes=self.item_bytes,
            partial_gradient_bytes=weights.partial_gradients,
            small_tensor_bytes=weights.small_tensors,
            host_bytes=sum(c.host_bytes for c in calls),
            last_call_weight_bytes=(
                calls[-1].state_tensor_bytes if running[-1:] == [len(self.calls) - 1] else 0
            ),
            parted_bytes=parted_bytes(calls),
            sparse_bytes=weights.sparse,
            row_bytes=weights.rows,
            replica_bytes=weights.replicas,
            tied_bytes=weights.trained if is_mirrored(replica.schedule) else weights.tied,
            forward_points=forward_points(
                [self.calls[i] for i in running],
                calls,
                weights.unread,
                self.function_prices.values.batch_only_names,
                self.function_prices.cluster.device.host_copies_hide,
            ),
        )

    def peak_points(
        self,
        running: list[int],
        calls: list[FunctionCost],
        trained: list[int],
        model_chunks: tuple[Span, ...],
    ) -> tuple[PeakPoint, ...]:
        """The points in time among which the peak of the calls `running` lies: of each model chunk where
        backward runs in two parts, else of all at once."""
        points = list[PeakPoint]()
        splits = any(cost.parts is not None for cost in calls)
        for number, (first, last) in enumerate(model_chunks if splits else [(0, len(self.calls))]):
            members = [at for at, call in enumerate(running) if first <= call < last]
            of_chunk = peak_points(
                [self.calls[running[at]] for at in members],
                [calls[at] for at in members],
                [trained[at] for at in members],
                self.function_prices.values.batch_only_names,
                self.function_prices.cluster.device.host_copies_hide,
            )
            points += (replace(point, chunk=number) if number else point for point in of_chunk)
        return tuple(points)

    def weights(
        self,
        prices: list[CallPrice],
        running: list[int],
        replica: ReplicaPoint,
        model_chunks: tuple[Span, ...],
    ) -> WeightBytes:
        """Bytes of the parameters of these calls."""
        local = [prices[i].cost.state_tensor_bytes for i in running]
        trained, small = (
            [round(n * shares[i]) for i, n in zip(running, local, strict=True)]
            for shares in (self.trained_shares, self.small_shares)
        )
        partial = {
            role: [prices[i].partial_gradient_bytes.get(role, 0) for i in running]
            for role, _ in replica.model_axes
        }
        first_read = list(self.first_read_bytes(running, trained))
        sparse = [min(prices[i].sparse_bytes, n) for i, n in zip(running, trained, strict=True)]
        return WeightBytes(
            self.weight_bytes(running, local),
            sum(first_read),
            self.weight_bytes(running, small),
            [n - tables for n, tables in zip(trained, sparse, strict=True)],
            list(accumulate(reversed(first_read[1:]), initial=0))[::-1],
            {role: self.weight_bytes(running, amounts) for role, amounts in partial.items()},
            self.weight_bytes(running, sparse),
            sum(prices[i].row_bytes for i in running),
            sum(prices[i].replica_bytes for i in running),
            min(self.tied_bytes(running, trained, model_chunks), sum(first_read)),
        )

    def tied_bytes(
        self, running: list[int], trained: list[int], model_chunks: tuple[Span, ...]
    ) -> int:
        """Of the bytes that these calls train, those of tensors that calls of other stages read."""
        tied = {
            name
            for name, users in self.shared_users.items()
            if not all(any(first <= i < end for first, end in model_chunks) for i in users)
        }
        if not tied:
            return 0
        shares = (
            (sum(n for name, n in sizes.items() if name in tied), sum(sizes.values()))
            for sizes in (self.parameters[i] for i in running)
        )
        return sum(
            n * part // max(all_, 1) for n, (part, all_) in zip(trained, shares, strict=True)
        )

    def last_saved_bytes(self, prices: list[CallPrice], members: Sequence[int]) -> int:
        """Bytes that the model's last call saves, if it is a member; its own backward follows at
        once.
        """
        return prices[-1].cost.saved_bytes if members[-1:] == [len(prices) - 1] else 0

    def saved_bytes(
        self, prices: list[CallPrice], model_chunks: Sequence[Span]
    ) -> tuple[ChunkBytes, ...]:
        """Bytes that each model chunk of a stage saves per micro-batch, and that it holds between the
        parts of its backward. The model's last call is left out."""
        bytes_per_chunk: list[ChunkBytes] = []
        for chunk in model_chunks:
            members = self.calls_per_micro_batch([chunk])
            costs = [prices[i].cost for i in members]
            saved = sum(c.saved_bytes for c in costs) + self.saved_between_bytes(members, costs)
            waiting = parted_bytes(costs)
            last = self.last_saved_bytes(prices, members)
            bytes_per_chunk.append(ChunkBytes(float(saved - last), float(waiting)))
        return tuple(bytes_per_chunk)

    def calls_per_micro_batch(self, model_chunks: Sequence[Span]) -> list[int]:
        """Calls of these spans that run for every micro-batch."""
        return [
            i
            for first, last in model_chunks
            for i in range(first, last)
            if i not in self.batch_only
        ]

    def saved_between_bytes(self, members: list[int], costs: list[FunctionCost]) -> int:
        """Bytes of values between calls that backward reads, each counted once.

        Batch-only values are left out: they stay with the batch.
        """
        saved_values: dict[str, int] = {}
        for i, cost in zip(members, costs, strict=True):
            call = self.calls[i]
            names = (*call.arguments, *call.results)
            sizes = (*cost.saved_arguments, *cost.saved_results)
            saved_values.update(
                (name, size) for name, size in zip(names, sizes, strict=True) if size
            )
        return sum(
            size
            for name, size in saved_values.items()
            if name not in self.function_prices.values.batch_only_names
        )

    def batch_slice_bytes(
        self, members: list[int], costs: list[FunctionCost], prices: list[CallPrice]
    ) -> BatchSliceBytes:
        """Slices of batch-only values for these calls."""
        full = {
            name: size
            for i in self.batch_only
            for name, size in zip(
                self.calls[i].results, prices[i].cost.boundary_bytes[2], strict=True
            )
        }
        slices = {
            name: size
            for i, cost in zip(members, costs, strict=True)
            for name, size in zip(self.calls[i].arguments, cost.boundary_bytes[0], strict=True)
            if name in self.function_prices.values.batch_only_names and size != full.get(name)
        }
        inputs = sum(n for name, n in slices.items() if name not in full)
        return BatchSliceBytes(sum(slices.values()), inputs)

    def weight_bytes(self, calls: list[int], local_bytes: list[int]) -> int:
        """Sum of `local_bytes` of the parameters of these calls, shared parameters counted once."""
        return sum(self.first_read_bytes(calls, local_bytes))

    def first_read_bytes(self, calls: list[int], local_bytes: list[int]) -> Iterator[int]:
        """Of the `local_bytes` that each of these calls reads, those that none before it does."""
        counted: set[str] = set()
        for i, amount in zip(calls, local_bytes, strict=True):
            if self.shares_parameters[i]:
                parameter_bytes = self.parameters[i]
                uncounted = sum(
                    size for name, size in parameter_bytes.items() if name not in counted
                )
                amount = amount * uncounted // max(sum(parameter_bytes.values()), 1)
                counted.update(parameter_bytes)
            yield amount
