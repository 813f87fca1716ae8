"""Adds up the calls of a stage: seconds, bytes of weights and saved values, bytes sent onwards.

Parameters and values that several calls share are counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from ...cost_model.communication.stage_transfer import TransferPayload
from ...cost_model.operators.function_cost import FunctionCost
from ...ir.plan.plan import Span
from ...ir.plan.workload import CompressibleTransfer
from ...ir.program import SMALL_BYTES
from ...ir.tensor import ITEM_BYTES, TensorType
from ..candidate import StageCost
from .function_prices import CallPrice, FunctionPrices, ModelAxes
from .live_bytes import peak_points

NO_TRANSFER = TransferPayload(0, CompressibleTransfer())


class StageAggregator:
    """Adds up calls of one model, given the price of every call."""

    def __init__(self, function_prices: FunctionPrices) -> None:
        self.function_prices, self.model = function_prices, function_prices.model
        self.calls, self.batch_only = self.model.calls, self.model.batch_only_calls()
        sizes = {p.name: p.type.bytes for p in self.model.parameters}
        self.parameters = [{n: sizes[n] for n in call.parameters} for call in self.calls]
        trained = {p.name for p in self.model.parameters if p.trainable}
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
        users = Counter(name for call in self.calls for name in set(call.parameters))
        self.shares_parameters = [any(users[n] > 1 for n in call.parameters) for call in self.calls]
        # floating-point values over every boundary, and whether tokens cannot shard them
        self.boundary_floats: list[list[tuple[TensorType, bool]]] = [
            [] for _ in range(len(self.calls) + 1)
        ]
        self.boundary_bytes = self.all_boundary_bytes()
        self.large_by_boundary: dict[
            tuple[int, int, int], CompressibleTransfer
        ] = {}  # by boundary, samples and ways

    def cost(
        self,
        prices: list[CallPrice],
        model_chunks: tuple[Span, ...],
        model_axes: ModelAxes,
        samples: int,
        members: Sequence[int],
    ) -> StageCost:
        """Cost of the calls `members` of a stage, all under one strategy, with `samples` per micro-
        batch.
        """
        running = [i for i in members if i not in self.batch_only]
        calls = [prices[i].cost for i in running]
        once = (
            [prices[i].cost for i in self.batch_only]
            if running[:1] == self.calls_per_micro_batch(model_chunks)[:1]
            else []
        )
        local = [c.state_tensor_bytes for c in calls]
        trained = [
            round(c.state_tensor_bytes * self.trained_shares[i])
            for i, c in zip(running, calls, strict=True)
        ]
        small = [
            round(c.state_tensor_bytes * self.small_shares[i])
            for i, c in zip(running, calls, strict=True)
        ]
        summed = {
            role: self.weight_bytes(
                running, [prices[i].partial_gradient_bytes.get(role, 0) for i in running]
            )
            for role, _ in model_axes
        }
        leaving, entering = (
            max(
                (self.transfer(at, samples, model_axes) for at in ends),
                key=lambda c: c.bytes,
                default=NO_TRANSFER,
            )
            for ends in (
                [last for _, last in model_chunks if last - 1 in members],
                [first for first, _ in model_chunks if first in members],
            )
        )
        return StageCost(
            model_chunks=model_chunks,
            forward_seconds=sum(c.forward.seconds for c in calls),
            backward_seconds=sum(c.backward.seconds for c in calls),
            communication_seconds=sum(
                c.forward.communication_seconds + c.backward.communication_seconds for c in calls
            ),
            batch_only_seconds=sum(c.forward.seconds for c in once),
            weight_bytes=self.weight_bytes(running, local),
            trained_bytes=self.weight_bytes(running, trained),
            partial_gradient_bytes=summed,
            call_weight_bytes=tuple(Counter(c.state_tensor_bytes for c in calls).items()),
            saved_bytes=sum(c.saved_bytes for c in calls)
            + self.saved_between_bytes(running, calls),
            last_saved_bytes=self.last_saved_bytes(prices, running),
            peak_points=peak_points(
                [self.calls[i] for i in running],
                calls,
                trained,
                self.function_prices.batch_only_names,
                self.function_prices.cluster.device.host_copies_hide,
            ),
            batch_only_bytes=sum(
                c.saved_bytes + c.forward.peak_bytes + sum(c.boundary_bytes[0]) for c in once
            ),
            batch_bytes=self.batch_bytes(running, calls, prices),
            small_tensor_bytes=self.weight_bytes(running, small),
            host_bytes=sum(c.host_bytes for c in calls),
            outgoing_bytes=leaving.bytes,
            incoming_bytes=entering.bytes,
            outgoing_compressible=leaving.large,
            incoming_compressible=entering.large,
        )

    def last_saved_bytes(self, prices: list[CallPrice], members: Sequence[int]) -> int:
        """Bytes that the model's last call saves, if it is a member; its own backward follows at
        once.
        """
        return prices[-1].cost.saved_bytes if members[-1:] == [len(prices) - 1] else 0

    def saved_bytes(
        self, prices: list[CallPrice], model_chunks: Sequence[Span]
    ) -> tuple[float, ...]:
        """Bytes that each model chunk of a stage saves per micro-batch; empty without interleaving.

        The model's last call is left out.
        """
        bytes_per_chunk = []
        for chunk in model_chunks if len(model_chunks) > 1 else ():
            members = self.calls_per_micro_batch([chunk])
            costs = [prices[i].cost for i in members]
            saved = sum(c.saved_bytes for c in costs) + self.saved_between_bytes(members, costs)
            bytes_per_chunk.append(float(saved - self.last_saved_bytes(prices, members)))
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
            if name not in self.function_prices.batch_only_names
        )

    def batch_bytes(
        self, members: list[int], costs: list[FunctionCost], prices: list[CallPrice]
    ) -> tuple[int, int]:
        """Bytes per micro-batch of batch-only values sliced for these calls; of these, inputs."""
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
            if name in self.function_prices.batch_only_names and size != full.get(name)
        }
        return sum(slices.values()), sum(n for name, n in slices.items() if name not in full)

    def weight_bytes(self, calls: list[int], local_bytes: list[int]) -> int:
        """Sum of `local_bytes` of the parameters of these calls, shared parameters counted once."""
        counted: set[str] = set()
        total = 0
        for i, amount in zip(calls, local_bytes, strict=True):
            if self.shares_parameters[i]:
                parameter_bytes = self.parameters[i]
                uncounted = sum(
                    size for name, size in parameter_bytes.items() if name not in counted
                )
                amount = amount * uncounted // max(sum(parameter_bytes.values()), 1)
                counted.update(parameter_bytes)
            total += amount
        return total

    def transfer(self, at: int, samples: int, model_axes: ModelAxes) -> TransferPayload:
        """What one device sends per micro-batch of `samples` over the boundary before call `at`."""
        (split, full), degree = (
            self.boundary_bytes[at],
            self.function_prices.token_degree(model_axes),
        )
        amount = (split // degree + full) * samples // self.model.batch
        key = at, samples, degree
        if key not in self.large_by_boundary:
            self.large_by_boundary[key] = self.large_values(*key)
        return TransferPayload(amount, self.large_by_boundary[key])

    def large_values(self, at: int, samples: int, degree: int) -> CompressibleTransfer:
        """Values of a transfer that are large enough to compress, tokens sharded by `degree`."""
        local = [
            (full.bytes // (1 if plain else degree) * samples // self.model.batch, full)
            for full, plain in self.boundary_floats[at]
        ]
        large = [(n, ITEM_BYTES[full.dtype]) for n, full in local if n >= SMALL_BYTES]
        return CompressibleTransfer(sum(n for n, _ in large), sum(n // item for n, item in large))

    def all_boundary_bytes(self) -> list[tuple[int, int]]:
        """Full bytes of values crossing each boundary: with a token dimension, and without."""
        last_readers = {name: i for i, call in enumerate(self.calls) for name in call.arguments}
        deltas = [[0, 0] for _ in range(len(self.calls) + 1)]
        for i, call in enumerate(self.calls):
            function = self.function_prices.functions[call.function]
            if not function.differentiable:
                continue
            for name, output in zip(call.results, function.outputs, strict=True):
                last_reader, type_ = last_readers.get(name, i), function.types[output.value]
                without_tokens = (
                    self.function_prices.flow.token_shard(function, output.value) is None
                )
                if last_reader > i:
                    deltas[i + 1][without_tokens] += type_.bytes
                    deltas[last_reader + 1][without_tokens] -= type_.bytes
                for at in range(i + 1, last_reader + 1 if type_.is_float else 0):
                    self.boundary_floats[at].append((type_, without_tokens))
        columns = (accumulate(column) for column in zip(*deltas, strict=True))
        return list(zip(*columns, strict=True))
