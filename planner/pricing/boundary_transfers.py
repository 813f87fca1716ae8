"""Bytes that a pipeline stage sends over every boundary between calls."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from ...cost_model.communication.stage_transfer import TransferPayload
from ...ir.cached import cached_method
from ...ir.model.tensor import ITEM_BYTES, TensorType
from ...ir.plan.program import SMALL_BYTES
from ...ir.plan.workload import CompressibleTransfer
from ..question.candidate import ReplicaPoint
from ..question.strategy_space import token_degree
from .function_prices import FunctionPrices

NO_TRANSFER = TransferPayload(0, CompressibleTransfer())


class TransferBytes(NamedTuple):
    """Full bytes of the values over one boundary: with a token dimension, and without."""

    with_tokens: int
    without_tokens: int


class BoundaryTransfers:
    """Transfers over the boundaries of one model's calls; boundary `i` lies before call `i`."""

    def __init__(self, function_prices: FunctionPrices) -> None:
        self.function_prices, self.model = function_prices, function_prices.model
        # floating-point values over every boundary, and whether tokens cannot shard them
        self.floats: list[list[tuple[TensorType, bool]]] = [
            [] for _ in range(len(self.model.calls) + 1)
        ]
        self.bytes = self.count_bytes()

    def count_bytes(self) -> list[TransferBytes]:
        """Bytes over every boundary; also collects `floats`."""
        calls, function_prices = self.model.calls, self.function_prices
        last_readers = {name: i for i, call in enumerate(calls) for name in call.arguments}
        deltas = [[0] * (len(calls) + 1) for _ in TransferBytes._fields]
        for i, call in enumerate(calls):
            function = function_prices.functions[call.function]
            if not function.differentiable:
                continue
            for name, output in zip(call.results, function.outputs, strict=True):
                last_reader, type_ = last_readers.get(name, i), function.types[output.value]
                without_tokens = function_prices.flow.token_shard(function, output.value) is None
                if last_reader > i:
                    deltas[without_tokens][i + 1] += type_.bytes
                    deltas[without_tokens][last_reader + 1] -= type_.bytes
                for at in range(i + 1, last_reader + 1 if type_.differentiable else 0):
                    self.floats[at].append((type_, without_tokens))
        return list(map(TransferBytes, *map(accumulate, deltas)))

    def transfer(self, boundary: int, replica: ReplicaPoint) -> TransferPayload:
        """What one device sends over a boundary per micro-batch."""
        degree = token_degree(replica.model_axes)
        full, samples = self.bytes[boundary], replica.samples_per_device
        amount = (full.with_tokens // degree + full.without_tokens) * samples // self.model.batch
        return TransferPayload(amount, self.large_values(boundary, samples, degree))

    @cached_method
    def large_values(self, boundary: int, samples: int, degree: int) -> CompressibleTransfer:
        """Values of a transfer that are large enough to compress, tokens sharded by `degree`."""
        local = [
            (full.bytes // (1 if without_tokens else degree) * samples // self.model.batch, full)
            for full, without_tokens in self.floats[boundary]
        ]
        large = [(n, ITEM_BYTES[full.dtype]) for n, full in local if n >= SMALL_BYTES]
        return CompressibleTransfer(sum(n for n, _ in large), sum(n // item for n, item in large))

    def largest(self, boundaries: list[int], replica: ReplicaPoint) -> TransferPayload:
        """The largest transfer over these boundaries; none over none."""
        transfers = (self.transfer(boundary, replica) for boundary in boundaries)
        return max(transfers, key=lambda payload: payload.bytes, default=NO_TRANSFER)
