"""Costs of pipeline stages before batch axes shard anything, and a model partitioned into stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from ...cost_model.communication.stage_transfer import TransferPayload, coding_bytes, message_bytes
from ...cost_model.memory.scheduled import ChunkBytes
from ...cost_model.pipeline.closed_form import fractions
from ...cost_model.pipeline.scheduled import StageWork
from ...ir.compression.program import CompressionProgram
from ...ir.plan.plan import Span
from ...ir.plan.schedules.registry import chunk_map, is_mirrored
from ...ir.plan.strategy import Strategy
from ...ir.plan.workload import CompressibleTransfer, StageBytes
from ..question.candidate import ReplicaPoint


class StageCost(msgspec.Struct, frozen=True):
    """Costs of a stage's calls of one strategy, before the batch axes shard anything.

    Seconds are per micro-batch, those of batch-only calls per step; `weights_seconds` are the part
    of backward that runs apart. `bytes`: per device;
    `outgoing_compressible`, `incoming_compressible`: parts of its transfers that may be compressed.
    """

    model_chunks: tuple[Span, ...]
    forward_seconds: float
    backward_seconds: float
    communication_seconds: float
    batch_only_seconds: float
    bytes: StageBytes
    weights_seconds: float = 0.0
    outgoing_compressible: CompressibleTransfer = CompressibleTransfer()
    incoming_compressible: CompressibleTransfer = CompressibleTransfer()

    @property
    def transfer(self) -> TransferPayload:
        """Transfer to the next stage."""
        return TransferPayload(self.bytes.outgoing_bytes, self.outgoing_compressible)

    def encoded(self, program: CompressionProgram | None) -> StageCost:
        """This cost with stage transfers compressed by `program`; unchanged without one."""
        if program is None or not (
            self.outgoing_compressible.elements or self.incoming_compressible.elements
        ):
            return self
        incoming = TransferPayload(self.bytes.incoming_bytes, self.incoming_compressible)
        encoded_bytes = replace(
            self.bytes,
            message_bytes=message_bytes(self.transfer, program),
            codec_bytes=coding_bytes(self.transfer, incoming, program),
        )
        return replace(self, bytes=encoded_bytes)


class StrategyCost(NamedTuple):
    """Cost of the calls of one strategy in one stage."""

    strategy: Strategy
    cost: StageCost


class StageTimes(NamedTuple):
    """Seconds of a stage, with what its batch axes communicate.

    Forward and backward are per micro-batch, and so are the communication in both and the part of
    backward for weights; synchronisation, the optimizer and batch-only calls run once per step.
    """

    forward_seconds: float
    backward_seconds: float
    communication_seconds: float
    per_step_seconds: float
    weights_seconds: float = 0.0

    @property
    def busy_seconds(self) -> float:
        """Seconds per micro-batch."""
        return self.forward_seconds + self.backward_seconds


class StageMemory(NamedTuple):
    """Bytes of a stage at its peak, by term."""

    terms: tuple[tuple[str, int], ...]

    @property
    def peak_bytes(self) -> int:
        return sum(amount for _, amount in self.terms)


class EndShares(NamedTuple):
    """Fractions of a stage's seconds that its first and its last model chunk take."""

    first: float
    last: float


class PipelineLoad(NamedTuple):
    """What the stages of a pipeline take, one value per stage.

    `busy_seconds`: per micro-batch, of them `forward_seconds` and `weights_seconds` in those parts;
    `send_seconds`: to the next stage.
    """

    busy_seconds: tuple[float, ...]
    send_seconds: tuple[float, ...]
    end_shares: tuple[EndShares, ...]
    per_step_seconds: tuple[float, ...]
    weights_seconds: tuple[float, ...]
    forward_seconds: tuple[float, ...]

    def work(self, chunks: int) -> list[StageWork]:
        """The same by part, with `chunks` model chunks per stage."""
        return [
            StageWork(forward, busy - forward, weights, shares[:chunks])
            for forward, busy, weights, shares in zip(
                self.forward_seconds,
                self.busy_seconds,
                self.weights_seconds,
                self.end_shares,
                strict=True,
            )
        ]


class StagePartition(msgspec.Struct, frozen=True):
    """A model partitioned into pipeline stages; equal stages share one `StageCost`.

    `bounds`: first call of every model chunk, then the number of calls; `cost_index`: index into
    `stage_costs` for every stage; `send_seconds`: transfer to the next stage; `saved_bytes`: bytes
    that each model chunk saves, for every item of `stage_costs`.
    """

    bounds: tuple[int, ...]
    stage_costs: tuple[StageCost, ...]
    cost_index: tuple[int, ...]
    send_seconds: tuple[float, ...]
    end_shares: tuple[EndShares, ...]
    saved_bytes: tuple[tuple[ChunkBytes, ...], ...]


def end_chunk_shares(
    seconds: Sequence[float], stages: Sequence[Sequence[Span]]
) -> tuple[EndShares, ...]:
    """Shares of the end chunks of every stage, from the seconds of every call."""
    fractions_per_stage = (
        fractions([sum(seconds[first:last]) for first, last in chunk_spans])
        for chunk_spans in stages
    )
    return tuple(
        EndShares(chunk_fractions[0], chunk_fractions[-1])
        for chunk_fractions in fractions_per_stage
    )


def model_chunk_count(replica: ReplicaPoint) -> int:
    """Chunks that a model is partitioned into."""
    return chunk_map(replica.schedule, replica.stages, replica.model_chunks).total


def stage_model_chunks(
    bounds: Sequence[int], model_chunks: int, schedule: str
) -> list[tuple[Span, ...]]:
    """Call spans of the model chunks of every stage, `model_chunks` of them per stage."""
    total = len(bounds) - 1
    stages = total if is_mirrored(schedule) else total // model_chunks
    placed = chunk_map(schedule, stages, model_chunks)
    return placed.deal(list(pairwise(bounds)))
