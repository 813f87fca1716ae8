"""Workload amounts of a plan, before prices: operations, bytes communicated, bytes in memory.

A plan carries them so that every price in it can be explained, and computed again for another
cluster, without the model.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..model.loops import Work
from ..ranges import Amount, AxisSize, Bytes, Count, Index, ItemBytes, Seconds
from .strategy import Strategy


class Kernels(msgspec.Struct, frozen=True):
    """`count` equal operators: floating-point operations and bytes moved by each. `kind`: the
    operator's name where the device has a measured curve for it."""

    work: Work
    dtype: str
    flops: Amount
    moved_bytes: Amount
    count: Count
    kind: str = ""


class Collectives(msgspec.Struct, frozen=True):
    """`count` equal collectives over an axis of `size` ranks, `stride` ranks apart. `item_bytes`:
    bytes of one element where the message may be compressed, else 0."""

    kind: str
    axis: str
    amount_bytes: Amount
    size: AxisSize
    stride: AxisSize
    count: Count
    item_bytes: Bytes = 0


class CallWork(msgspec.Struct, frozen=True):
    """Work of one call in one direction (forward or backward), per device and micro-batch.
    `host_bytes` are copied to or from host memory meanwhile. `launch_seconds`: of the host, which
    launches every operator; `stall_seconds`: the device has nothing to do while the host looks at
    results."""

    kernels: tuple[Kernels, ...] = ()
    collectives: tuple[Collectives, ...] = ()
    host_bytes: Bytes = 0
    launch_seconds: Seconds = 0.0
    stall_seconds: Seconds = 0.0


class CompressibleTransfer(msgspec.Struct, frozen=True):
    """The part of a transfer between stages that is large enough to be compressed."""

    bytes: Bytes = 0
    elements: Bytes = 0


Phase = Literal["forward", "backward", "accumulate"]
StepKind = Literal["F", "B", "W"]  # forward, backward or its part for inputs, its part for weights


class PeakPoint(msgspec.Struct, frozen=True):
    """Memory while one call of a stage runs: a candidate for the peak of the stage.

    `waiting_bytes` lie between calls or wait for backward; `call_bytes` is the peak of the call's own
    buffers. `complete_gradient_bytes`: weights whose gradients are complete; the call itself reads
    `weight_bytes`, the largest tensor of `largest_weight_bytes`. In the phase `accumulate` the call
    adds its gradients to those of earlier micro-batches. Beside it the weights of the call that runs
    next may be gathered (`next_weight_bytes`), and gradients of the one before be reduced (those of
    `sent_weight_bytes`). `own_bytes` of those that wait are not there before the call. `apart`: in the
    part of backward for weights, where that is a step of its own; `chunk`: the stage's model chunk,
    where backward runs in two parts.
    """

    phase: Phase
    waiting_bytes: Bytes
    call_bytes: Bytes
    complete_gradient_bytes: Bytes
    weight_bytes: Bytes
    largest_weight_bytes: Bytes
    next_weight_bytes: Bytes = 0
    sent_weight_bytes: Bytes = 0
    own_bytes: Bytes = 0
    apart: bool = False
    chunk: Index = 0

    @property
    def step(self) -> StepKind:
        """The kind of the schedule's step that the call runs in."""
        if self.phase == "forward":
            return "F"
        return "W" if self.apart else "B"


class WaitingBeside(msgspec.Struct, frozen=True):
    """Micro-batches that wait on a stage while it does a step of one kind for another one: `saved` of
    them between forward and backward, `parted` between the parts of backward; a model chunk's values
    count by their share of the stage's. `reduced`: whether gradients of earlier ones exist."""

    step: StepKind
    saved: Amount
    parted: Amount
    reduced: bool
    chunk: Index = 0

    def holds_all_of(self, other: WaitingBeside) -> bool:
        """Whether no less waits than in another case of the same kind of step."""
        return (
            (self.step, self.chunk) == (other.step, other.chunk)
            and self.saved >= other.saved
            and self.parted >= other.parted
            and self.reduced >= other.reduced
        )

    def meets(self, point: PeakPoint) -> bool:
        """Whether the step of a point is one of these."""
        return (point.step, point.chunk) == (self.step, self.chunk)


class StageBytes(msgspec.Struct, frozen=True):
    """Memory amounts of one stage on one device.

    weight_bytes            parameters and buffers; `trained_bytes` of them are trained
    call_weight_bytes       (bytes of weights, number of calls with that many)
    last_call_weight_bytes  those of the model's last call, if it is one of them
    saved_bytes             activations that wait for backward, per micro-batch
    last_saved_bytes        of those, the last call's: backward of the loss reads them at once
    peak_points             the calls at one of which the peak is reached
    batch_only_bytes        values of calls that run once per step
    batch_copy_bytes        copies of batch-only values per micro-batch
    batch_input_bytes       of those, the micro-batch's part of the batch itself
    outgoing_bytes          sent to the next stage; `incoming_bytes` come from the one before
    message_bytes           the compressed message instead; `codec_bytes` while one is (de)coded
    item_bytes              one element of a parameter
    partial_gradient_bytes  of `trained_bytes`, by axis: gradients to be summed along it
    small_tensor_bytes      of `trained_bytes`, tensors too small to be compressed
    host_bytes              wait in host memory, per micro-batch
    parted_bytes            wait between the parts of backward, where it has two, per micro-batch
    sparse_bytes            of `trained_bytes`, tables with gradients of the rows that are read
    row_bytes               of those that a whole step reads, with their numbers
    replica_bytes           beside `weight_bytes`, of replicas of experts
    tied_bytes              of `trained_bytes`, weights that another stage trains as well
    forward_points          (live bytes while a call of a forward runs, trained bytes that it and those
                            before it do not read); none that another exceeds in both
    """

    weight_bytes: Bytes
    trained_bytes: Bytes
    call_weight_bytes: tuple[tuple[Bytes, Count], ...]
    saved_bytes: Bytes
    last_saved_bytes: Bytes
    peak_points: tuple[PeakPoint, ...]
    batch_only_bytes: Bytes
    batch_copy_bytes: Bytes
    batch_input_bytes: Bytes
    outgoing_bytes: Bytes
    incoming_bytes: Bytes
    item_bytes: ItemBytes
    partial_gradient_bytes: dict[str, Bytes]
    small_tensor_bytes: Bytes = 0
    host_bytes: Bytes = 0
    message_bytes: Bytes = 0
    codec_bytes: Bytes = 0
    last_call_weight_bytes: Bytes = 0
    parted_bytes: Bytes = 0
    sparse_bytes: Bytes = 0
    row_bytes: Bytes = 0
    replica_bytes: Bytes = 0
    tied_bytes: Bytes = 0
    forward_points: tuple[tuple[Bytes, Bytes], ...] = ()

    @property
    def dense_bytes(self) -> int:
        """Weights that are trained with gradients of their own size."""
        return self.trained_bytes - self.sparse_bytes

    @property
    def summed_bytes(self) -> int:
        """Bytes of all gradients, of the weights' element type."""
        return self.dense_bytes + self.row_bytes

    @property
    def largest_weight_bytes(self) -> int:
        """Bytes of the largest weight tensor."""
        return max((point.largest_weight_bytes for point in self.peak_points), default=0)


class StrategyBytes(msgspec.Struct, frozen=True):
    """Memory amounts of the calls of one strategy in one stage."""

    strategy: Strategy
    bytes: StageBytes
