"""Buffers of exchanges: what a device needs beside weights and gradients while they travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.plan.program import BUCKET_BYTES, BUCKETS_AHEAD, MAX_BUCKETS_IN_FLIGHT, step_bucket_bytes
from ...ir.plan.workload import PeakPoint, StageBytes
from ..communication.compressed_collective import exchange_bytes
from ..communication.data_parallel import BatchAxes
from ..communication.exchange import CallBuffers, CompressionSubject


def transfer_buffer_bytes(
    axes: BatchAxes,
    subject: CompressionSubject,
    total_bytes: int,
    bucket_bytes: int,
    uncompressed_bytes: int,
) -> int:
    """Peak buffer bytes while weights or gradients are exchanged in buckets, beyond input and
    result: `uncompressed_bytes`, or those of compressed buckets if larger."""
    if not axes.compression:
        return uncompressed_bytes
    item = axes.item * (axes.gradient_scale if subject == "gradients" else 1)
    elements = int(min(total_bytes, MAX_BUCKETS_IN_FLIGHT * bucket_bytes) // item)
    sizes = [
        exchange_bytes(program, elements, axis.group, axes.cluster)
        for (what, role), program in axes.compression.items()
        for axis in (*axes.replica_axes, *axes.shard_axes)
        if what == subject and axis.role == role
    ]
    return max(uncompressed_bytes, *sizes) if sizes else uncompressed_bytes


def reduce_buffer_bytes(
    axes: BatchAxes, bucket_bytes: int, gradient_bytes: int, largest_bytes: int
) -> int:
    """Peak buffer bytes of the gradient reduction per step, one bucket at a time: the result,
    and for a reduce-scatter the exchange before it."""
    if axes.degree > 1 and "gradient" not in axes.sharded_kinds:
        return transfer_buffer_bytes(
            axes,
            "gradients",
            gradient_bytes,
            bucket_bytes,
            bucket_bytes + bucket_bytes // axes.degree,
        )
    copies = (
        _copy_buffer_bytes(
            axes.replicated_bytes(gradient_bytes), axes.replicated_bytes(largest_bytes)
        )
        if axes.remainder_axes
        else 0
    )
    alone = all(axis.size == 1 for axis in (*axes.replica_axes, *axes.model_axes))
    return max(
        copies,
        0
        if alone
        else transfer_buffer_bytes(axes, "gradients", gradient_bytes, bucket_bytes, bucket_bytes),
    )


def beside_call_bytes(axes: BatchAxes, point: PeakPoint, buffers: int) -> int:
    """Bytes beside a call: its own `buffers`, the next one's weights, and gradients of the one before,
    which have arrived when its own are sent."""
    behind = reduced_behind_bytes(axes, point)
    buffers = max(buffers, behind) if point.phase == "accumulate" else buffers + behind
    return buffers + gathered_ahead_bytes(axes, point)


def gathered_ahead_bytes(axes: BatchAxes, point: PeakPoint) -> int:
    """Bytes of the next call's weights, on their way beside a call: as they arrive and as they are
    sent."""
    if "parameter" not in axes.sharded_kinds or "weights" not in axes.execution.overlaps:
        return 0
    arriving = at_most_in_flight(axes, axes.sharded_bytes(point.next_weight_bytes))
    return arriving + arriving // axes.degree


def reduced_behind_bytes(axes: BatchAxes, point: PeakPoint) -> int:
    """Bytes of the gradients of the call before, on their way beside a call: as they are sent and as
    they arrive, and the part that does not travel."""
    if "gradient" not in axes.sharded_kinds or "gradients" not in axes.execution.overlaps:
        return 0
    behind = int(point.sent_weight_bytes * axes.gradient_scale)
    sent = at_most_in_flight(axes, axes.sharded_bytes(behind))
    return sent + arriving_bytes(axes, sent) + (axes.replicated_bytes(behind) if sent else 0)


def arriving_bytes(axes: BatchAxes, sent: int) -> int:
    """Bytes in which gradients arrive: shards of their sum, or where ranks add them up, the shards of
    the others and their sum, which for two ranks are one."""
    if axes.cluster.device.host_copies_hide or axes.degree == 2:
        return sent // axes.degree
    return sent


def call_buffers(axes: BatchAxes, point: PeakPoint, stage: StageBytes) -> CallBuffers:
    """Peak bytes of a call's buffers at one point. What travels beside it is not counted."""
    weights, gathered = point.weight_bytes, "parameter" in axes.sharded_kinds
    if axes.execution.contiguous_buffers:
        together = point.largest_weight_bytes if axes.execution.gathers_singly else weights
        return CallBuffers(point.call_bytes, 3 * together * gathered, 0)
    sharded, largest = (axes.sharded_bytes(weights), axes.sharded_bytes(point.largest_weight_bytes))
    compressed = min(sharded, max(BUCKET_BYTES, largest))
    bucket = min(sharded, max(BUCKET_BYTES * axes.degree, largest))
    if point.phase != "accumulate":
        moved = (
            transfer_buffer_bytes(axes, "weights", sharded, compressed, bucket) if gathered else 0
        )
        before = max(sharded + moved, weights + largest) if gathered else 0
        before -= point.own_bytes
        if before - weights > point.call_bytes:
            return CallBuffers(0, before, 0)
        return CallBuffers(point.call_bytes, weights * gathered, 0)
    return accumulation_buffers(axes, point, stage)


def accumulation_buffers(axes: BatchAxes, point: PeakPoint, stage: StageBytes) -> CallBuffers:
    """Peak bytes of buffers while the gradients of a call are reduced and added up."""
    scale = axes.gradient_scale
    call_bytes = point.call_bytes + int(point.weight_bytes * (scale - 1))
    largest_bytes = int(point.largest_weight_bytes * scale)
    if "gradient" not in axes.sharded_kinds:
        if reduces_in_place(axes) and all_reduced_once(axes):
            largest_bytes = min(largest_bytes, int(stage.tied_bytes * scale))
        return CallBuffers(call_bytes, 0, largest_bytes)
    sharded = axes.sharded_bytes(int(point.weight_bytes * scale))
    largest = axes.sharded_bytes(largest_bytes)
    if axes.remainder_axes:
        # the replicated rest of a gradient stays until its shard has returned
        most = max(
            _copy_buffer_bytes(sharded, largest), axes.local_bytes(largest_bytes, "gradient")
        )
        return CallBuffers(call_bytes, sharded // axes.degree + most, 0)
    bucket = min(sharded, max(BUCKET_BYTES, largest))
    # all are joined, one bucket after the other, then all are sent
    plain = max(bucket, sharded + arriving_bytes(axes, sharded) - call_bytes)
    sent = transfer_buffer_bytes(axes, "gradients", sharded, bucket, plain)
    return CallBuffers(call_bytes, sent, 0)


def bucket_gradient_bytes(
    axes: BatchAxes, point: PeakPoint, stage: StageBytes, largest: int, micro_batches: int
) -> int:
    """Bytes of weights whose gradients have memory while a call runs: of those that are complete,
    and where they are summed once per step, of the whole bucket that was begun. The largest tensor has
    `largest` bytes."""
    complete, trained = point.complete_gradient_bytes, stage.summed_bytes
    begun = complete > 0 or point.phase == "accumulate"
    if scatters_in_step(axes) and micro_batches == 1:
        if point.phase == "accumulate":  # a bucket may leave before its last call has ended
            complete = min(complete + point.weight_bytes, trained)
        return scattered_bytes(axes, complete, trained, largest) if begun else 0
    shared = bucketed_bytes(axes, stage)
    if not begun or axes.compression or "gradients" not in axes.execution.overlaps:
        return min(complete, trained)
    return min(complete + min(step_bucket(axes, shared), shared), trained)


def bucketed_bytes(axes: BatchAxes, stage: StageBytes) -> int:
    """Bytes of weights whose gradients are summed once per step: all of them, or along axes inside a
    replica those of which each rank has a part of the sum."""
    if all_reduced_once(axes):
        return stage.summed_bytes
    partial = (stage.partial_gradient_bytes.get(a.role, 0) for a in axes.model_axes if a.size > 1)
    return min(stage.summed_bytes, sum(partial))


def all_reduced_once(axes: BatchAxes) -> bool:
    """Whether all gradients are summed once per step, over zero1 or ranks with other samples."""
    zero1 = "optimizer" in axes.sharded_kinds and "gradient" not in axes.sharded_kinds
    return zero1 or any(axis.size > 1 for axis in axes.replica_axes)


def reduces_in_place(axes: BatchAxes) -> bool:
    """Whether what is summed once per step is added up in flat buffers, in which it travels: neither
    what is compressed, nor weights that are sharded in part or summed over groups; tied ones leave."""
    plain = not axes.compression and axes.compressed_optimizer is None
    return plain and axes.execution.reduces_in_place and axes.is_full


def step_bucket(axes: BatchAxes, trained: int) -> int:
    """Bytes of weights whose gradients share a bucket that is summed once per step."""
    shards = axes.degree if "gradient" in axes.sharded_kinds else 1
    scale = axes.gradient_scale / shards
    return int(step_bucket_bytes(trained * scale) / scale)


def scatters_in_step(axes: BatchAxes) -> bool:
    """Whether gradients are reduced to shards in buckets, beside the backward that completes them."""
    if axes.compression or axes.compressed_optimizer is not None or not axes.is_full:
        return False
    once = "optimizer" in axes.sharded_kinds and "gradient" not in axes.sharded_kinds
    return once and axes.degree > 1 and "gradients" in axes.execution.overlaps


def scattered_bytes(axes: BatchAxes, complete: int, trained: int, largest: int) -> int:
    """Bytes of weights whose gradients take as much memory as those of `complete` bytes that are
    reduced to shards beside backward: shards that have arrived, what travels, a bucket that is begun."""
    bucket = max(step_bucket(axes, trained), largest)
    travelling = min(complete, BUCKETS_AHEAD * bucket)
    arrived = (complete - travelling) // axes.degree
    begun = min(bucket, trained - complete)
    return arrived + travelling + arriving_bytes(axes, travelling) + begun


def step_arrival_bytes(axes: BatchAxes, complete: int, trained: int, largest: int) -> int:
    """Bytes of gradients that arrive beside those of `trained` bytes of weights which all ranks have,
    once those of `complete` bytes are."""
    if not scatters_in_step(axes):
        return 0
    bucket = step_bucket(axes, trained)
    if complete < trained <= bucket and not axes.model_axes:
        return 0  # the one bucket waits
    travelling = min(complete, trained, BUCKETS_AHEAD * max(bucket, largest))
    return arriving_bytes(axes, int(travelling * axes.gradient_scale))


class UpdateGather(NamedTuple):
    """Buffer bytes while updated weights are gathered from their owners: what is on its way once the
    optimizer has ended, and the most between calls, where a bucket that has arrived is copied into its
    tensors. `filled`: of the `trained` bytes of weights, those that travel at once; `together`: all are
    one bucket."""

    travelling: int
    arriving: int
    filled: int
    trained: int
    together: bool

    def beside_calls(self, points: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The most (live bytes, bytes on their way) while calls of the next forward run, which wait for
        what they read. `points`: live bytes and those of weights that are not read yet; between two of
        them both change evenly."""
        if self.together:
            before = [live for live, unread in points if unread >= self.trained]
            return (max(before), self.travelling) if before else (0, 0)
        ends = [(live, min(unread, self.filled)) for live, unread in points]
        kinks = [
            (live + (later - live) * (unread - self.filled) // (unread - rest), self.filled)
            for live, unread in points
            for later, rest in points
            if rest < self.filled < unread
        ]
        live, unread = max((*ends, *kinks), key=sum, default=(0, 0))
        return live, self.travelling * unread // max(self.filled, 1)


def update_gather_bytes(axes: BatchAxes, trained: int, largest: int) -> UpdateGather | None:
    """What a gather of updated weights takes, all at once or in buckets that travel beside a forward, of
    which each is sent from a copy; None where every rank updates what it reads."""
    if "optimizer" not in axes.sharded_kinds or "parameter" in axes.sharded_kinds:
        return None
    bucket = min(trained, int(step_bucket_bytes(trained, BUCKET_BYTES * axes.degree)))
    if axes.compression or "weights" not in axes.execution.overlaps:
        compressed = min(trained, BUCKET_BYTES)
        whole = trained + transfer_buffer_bytes(axes, "weights", trained, compressed, bucket)
        return UpdateGather(whole, whole, trained, trained, together=True)
    filled = min(trained, BUCKETS_AHEAD * max(bucket, largest))
    return UpdateGather(
        filled + filled // axes.degree,
        filled + bucket + (filled - bucket) // axes.degree,
        filled,
        trained,
        together=bucket == trained,
    )


def at_most_in_flight(axes: BatchAxes, amount: int) -> int:
    """Bytes of a message that travels beside other work; 0 for one that is too large to."""
    return amount if amount <= axes.in_flight_bytes else 0


def _copy_buffer_bytes(amount: int, largest: int) -> int:
    """Buffer bytes of a bucket of tensor slices: the received bucket, and a packed copy of the sent
    one unless it is a single slice."""
    together = amount - largest if largest > BUCKET_BYTES else amount
    return max(largest, 2 * min(together, BUCKET_BYTES))
