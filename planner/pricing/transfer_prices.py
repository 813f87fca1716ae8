"""Transfers between pipeline stages: links, seconds, and compression where it pays off."""

from __future__ import annotations

from collections.abc import Sequence

from ...cost_model.communication.stage_transfer import (
    StageTransfer,
    TransferPayload,
    boundary_links,
    price_transfers,
)
from ...ir.cached import cached_method
from ...ir.compression.program import CompressionProgram
from ...ir.devices.cluster import Link
from ...ir.plan.memory_action import KEEP
from ..question.candidate import ReplicaPoint
from .boundary_transfers import BoundaryTransfers
from .call_prices import CallPrices


class TransferPrices:
    """Prices the transfers between the stages of one model."""

    def __init__(self, call_prices: CallPrices, boundaries: BoundaryTransfers) -> None:
        self.call_prices, self.boundaries = call_prices, boundaries
        self.function_prices = call_prices.function_prices
        self.device = self.function_prices.cluster.device

    @cached_method
    def links(self, stages: int) -> list[Link]:
        """The link from every stage to the next one."""
        return boundary_links(stages, self.function_prices.cluster)

    def transfers(
        self, outgoing: Sequence[TransferPayload], program: CompressionProgram | None
    ) -> list[StageTransfer]:
        """The transfer of every stage to the next one."""
        return price_transfers(outgoing, self.links(len(outgoing)), program, self.device)

    def seconds(
        self, outgoing: Sequence[TransferPayload], program: CompressionProgram | None
    ) -> tuple[float, ...]:
        """Seconds of the transfer of every stage to the next one, in one direction."""
        return tuple(transfer.seconds for transfer in self.transfers(outgoing, program))

    def program(self, replica: ReplicaPoint) -> CompressionProgram | None:
        """Compression of stage transfers that pays off over a median boundary, if one does."""
        if replica.stages == 1 or not self.function_prices.activations.sends:
            return None
        return self.fastest_program(replica._replace(memory=KEEP, model_chunks=1, schedule="1f1b"))

    @cached_method
    def fastest_program(self, replica: ReplicaPoint) -> CompressionProgram | None:
        """The compression of stage transfers where everything is kept, one chunk per stage."""
        rounds = replica.micro_batches + replica.stages - 1
        transfers = [
            self.boundaries.transfer(at, replica) for at in range(1, len(self.call_prices.calls))
        ]
        typical = sorted(transfers, key=lambda payload: payload.bytes)[len(transfers) // 2]
        links = self.links(replica.stages)[:-1]
        slowest = min(links, key=lambda link: link.bandwidth_bytes_per_second)
        prices = self.call_prices.uniform(replica)
        compute_seconds = (
            sum(self.call_prices.seconds(prices)) / replica.stages * rounds if prices else 0.0
        )
        return self.function_prices.activations.stage_transfer_program(
            typical, slowest, self.device, rounds, compute_seconds
        )
