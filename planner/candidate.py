"""Candidates of the search: decisions for all calls, their price, and the stage costs behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from ..cost_model.communication.stage_transfer import TransferPayload, coding_bytes, message_bytes
from ..cost_model.pipeline.closed_form import fractions
from ..ir.compression.program import CompressionProgram
from ..ir.plan.interleave import assign_chunks
from ..ir.plan.memory_action import MemoryAction
from ..ir.plan.plan import Span
from ..ir.plan.strategy import Strategy
from ..ir.plan.workload import CompressibleTransfer, PeakPoint, StageBytes


class Decision(msgspec.Struct, frozen=True):
    """Strategy and memory action of calls `first` to `last - 1`; batch-only calls save nothing."""

    first: int
    last: int
    strategy: Strategy
    memory: MemoryAction


class Candidate(msgspec.Struct, frozen=True):
    """Decisions for all calls in order, with their predicted cost.

    `bounds`: first call of every model chunk, then the number of calls; `chunks`: model chunks per
    stage; `bubble`: idle fraction of the pipeline; `peak_bytes`: of the fullest device.
    """

    decisions: tuple[Decision, ...]
    micro_batches: int
    bounds: tuple[int, ...]
    step_seconds: float
    bubble: float
    peak_bytes: int
    chunks: int = 1

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return tuple(dict.fromkeys(d.strategy for d in self.decisions))

    @property
    def strategy_text(self) -> str:
        return " | ".join(map(str, self.strategies))

    @property
    def memory_text(self) -> str:
        """Memory actions in use, joined: `keep`, `keep+recompute`."""
        return "+".join(sorted({str(d.memory) for d in self.decisions}))

    def at(self, call: int) -> Decision:
        """The decision of one call."""
        return next(d for d in self.decisions if d.first <= call < d.last)


def end_chunk_shares(
    seconds: Sequence[float], stages: Sequence[Sequence[Span]]
) -> tuple[tuple[float, float], ...]:
    """Fractions of every stage's seconds spent in its first and in its last model chunk."""
    fractions_per_stage = (
        fractions([sum(seconds[first:last]) for first, last in chunk_spans])
        for chunk_spans in stages
    )
    return tuple((chunk_spans[0], chunk_spans[-1]) for chunk_spans in fractions_per_stage)


def stage_model_chunks(bounds: Sequence[int], chunks: int) -> list[tuple[Span, ...]]:
    """Call spans of the model chunks of every stage."""
    return assign_chunks(list(pairwise(bounds)), (len(bounds) - 1) // chunks)


class StageCost(msgspec.Struct, frozen=True):
    """Costs of one stage's calls, before the batch axes shard anything.

    Seconds are per micro-batch, bytes per device. `trained_bytes`: weights that the optimizer
    updates, `small_tensor_bytes` of them in small tensors; `partial_gradient_bytes`: gradients to
    all-reduce, by model axis; `call_weight_bytes`: (weight bytes of a call, number of such calls);
    `last_saved_bytes`: saved by the model's last call; `batch_bytes`: batch-only values sliced per
    micro-batch, and the part of them that is model input.
    """

    model_chunks: tuple[Span, ...]
    forward_seconds: float
    backward_seconds: float
    communication_seconds: float
    batch_only_seconds: float
    weight_bytes: int
    trained_bytes: int
    partial_gradient_bytes: dict[str, int]
    call_weight_bytes: tuple[tuple[int, int], ...]
    saved_bytes: int
    last_saved_bytes: int
    peak_points: tuple[PeakPoint, ...]
    batch_only_bytes: int
    batch_bytes: tuple[int, int]
    outgoing_bytes: int
    incoming_bytes: int
    small_tensor_bytes: int = 0
    host_bytes: int = 0
    outgoing_compressible: CompressibleTransfer = CompressibleTransfer()
    incoming_compressible: CompressibleTransfer = CompressibleTransfer()
    message_bytes: int = 0
    codec_bytes: int = 0

    def bytes(self, item_bytes: int) -> StageBytes:
        """Byte amounts for the memory model; `item_bytes` per parameter element."""
        return StageBytes(
            weight_bytes=self.weight_bytes,
            trained_bytes=self.trained_bytes,
            call_weight_bytes=self.call_weight_bytes,
            saved_bytes=self.saved_bytes,
            last_saved_bytes=self.last_saved_bytes,
            peak_points=self.peak_points,
            batch_only_bytes=self.batch_only_bytes,
            batch_copy_bytes=self.batch_bytes[0],
            batch_input_bytes=self.batch_bytes[1],
            outgoing_bytes=self.outgoing_bytes,
            incoming_bytes=self.incoming_bytes,
            item_bytes=item_bytes,
            partial_gradient_bytes=self.partial_gradient_bytes,
            small_tensor_bytes=self.small_tensor_bytes,
            host_bytes=self.host_bytes,
            message_bytes=self.message_bytes,
            codec_bytes=self.codec_bytes,
        )

    @property
    def transfer(self) -> TransferPayload:
        """Transfer to the next stage."""
        return TransferPayload(self.outgoing_bytes, self.outgoing_compressible)

    def encoded(self, program: CompressionProgram | None) -> StageCost:
        """This cost with stage transfers compressed by `program`; unchanged without one."""
        if program is None or not (
            self.outgoing_compressible.elements or self.incoming_compressible.elements
        ):
            return self
        incoming = TransferPayload(self.incoming_bytes, self.incoming_compressible)
        return replace(
            self,
            message_bytes=message_bytes(self.transfer, program),
            codec_bytes=coding_bytes(self.transfer, incoming, program),
        )


StrategyCost = tuple[Strategy, StageCost]  # the calls of one strategy in one stage


class StagePartition(msgspec.Struct, frozen=True):
    """A model partitioned into pipeline stages; equal stages share one `StageCost`.

    `cost_index`: entry of `stage_costs` for every stage; `send_seconds`: transfer to the next
    stage; `end_shares`: fractions of a stage's seconds in its first and last model chunk;
    `saved_bytes`: bytes that each model chunk saves, for every entry of `stage_costs`.
    """

    bounds: tuple[int, ...]
    stage_costs: tuple[StageCost, ...]
    cost_index: tuple[int, ...]
    send_seconds: tuple[float, ...]
    end_shares: tuple[
        tuple[float, float], ...
    ]  # parts of each stage's time: its first and its last piece
    saved_bytes: tuple[tuple[float, ...], ...]
