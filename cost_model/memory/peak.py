"""Peak bytes of a device, term by term: persistent, saved for backward, temporary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil, prod
from typing import Generic, NamedTuple

from ...ir.devices.cluster import Device
from ...ir.plan.plan import Optimizer
from ...ir.plan.program import BUCKET_BYTES
from ...ir.plan.workload import StageBytes, WaitingBeside
from ..communication.compressed_collective import FP32_BYTES
from ..communication.data_parallel import BatchAxes
from ..execution_model import ExecutionModel
from ..quantity import Quantity, Whole, share_of
from .exchange_buffers import (
    beside_call_bytes,
    bucket_gradient_bytes,
    bucketed_bytes,
    call_buffers,
    reduce_buffer_bytes,
    reduces_in_place,
    scattered_bytes,
    scatters_in_step,
    step_arrival_bytes,
    update_gather_bytes,
)
from .host_states import host_bytes, states_on_device
from .in_flight import InFlight

COMPRESSED_OPTIMIZER_VECTORS = 9  # peak flat vectors while one steps (counted in runs)
MARGIN = 0.03  # of the other terms: allocator rounding and fragmentation (assumed)


class PeakBytes(NamedTuple):
    """Bytes of a stage's calls of one strategy at one point in time, without weights and states."""

    batch: int
    gradients: int
    activations: int
    temporaries: int
    communication: int


def memory_terms(
    parts: Sequence[tuple[StageBytes, BatchAxes]],
    optimizer: Optimizer,
    execution: ExecutionModel,
    in_flight: InFlight,
    device: Device,
) -> tuple[tuple[str, int], ...]:
    """Named bytes of a stage at its peak; `parts`: one per strategy. Bytes beyond host memory make
    the stage infeasible."""
    terms: dict[str, int] = {}
    for (stage, axes), peak in zip(
        parts, stage_peaks(parts, execution, in_flight, device), strict=True
    ):
        amounts = part_amounts(stage, axes, optimizer, execution, peak)
        for name, amount in part_terms(amounts, axes).items():
            terms[name] = terms.get(name, 0) + amount
    terms["margin"] = margin_bytes(sum(terms.values()))
    terms["runtime"] = device.runtime_overhead_bytes
    beyond = host_bytes(parts, optimizer, execution, in_flight) - device.host_memory_bytes
    if beyond > 0:
        terms["beyond host memory"] = device.memory_bytes + beyond
    return tuple(terms.items())


class PartAmounts(NamedTuple, Generic[Whole]):
    """What the bytes of the calls of one strategy are computed from. `stepped`: weights whose
    optimizer states are here before ZeRO shards them, of `item_bytes` an element, with `states`
    states of `state_item_bytes`; `whole_tensors`: what tensors that are stepped whole take on their
    owner beyond an equal share; `replicas`: of experts, with their gradients; the rest as in
    `PeakBytes`."""

    weights: Whole
    stepped: Whole
    item_bytes: Whole
    states: Whole
    state_item_bytes: Whole
    compression: Whole
    gradients: Whole
    activations: Whole
    batch: Whole
    temporaries: Whole
    communication: Whole
    whole_tensors: Whole
    replicas: Whole


def part_amounts(
    stage: StageBytes,
    axes: BatchAxes,
    optimizer: Optimizer,
    execution: ExecutionModel,
    peak: PeakBytes,
) -> PartAmounts[int]:
    """The amounts of the calls of one strategy at one point in time."""
    replicated = execution.shards_replicated_states
    return PartAmounts(
        stage.weight_bytes,
        axes.stepped_bytes(stage.trained_bytes, stage.partial_gradient_bytes, replicated),
        stage.item_bytes,
        states_on_device(optimizer),
        optimizer.state_bytes,
        axes.compression_bytes(stage.trained_bytes, stage.small_tensor_bytes),
        peak.gradients,
        peak.activations,
        peak.batch,
        peak.temporaries,
        peak.communication,
        whole_tensor_bytes(stage, axes, optimizer, execution),
        stage.replica_bytes
        + stage.replica_bytes // stage.item_bytes * gradient_item(stage, execution),
    )


def whole_tensor_bytes(
    stage: StageBytes, axes: BatchAxes, optimizer: Optimizer, execution: ExecutionModel
) -> int:
    """Bytes that an optimizer which steps whole tensors needs where ranks have shards: the owner of the
    largest tensor has all of its states, and its gradient and value travel whole."""
    operators = prod(axis.size for axis in axes.model_axes)
    if optimizer.demand != "per tensor" or axes.shard_count("optimizer") * operators == 1:
        return 0
    elements = stage.largest_weight_bytes * operators // stage.item_bytes
    value_bytes = execution.stepped_item_bytes or stage.item_bytes
    return elements * (2 * value_bytes + states_on_device(optimizer) * optimizer.state_bytes)


def part_terms(amounts: PartAmounts[Whole], axes: BatchAxes) -> dict[str, Whole]:
    """Named bytes of the calls of one strategy at one point in time."""
    elements = axes.local_bytes(amounts.stepped, "optimizer") // amounts.item_bytes
    extra = {"compression": amounts.compression} if axes.compression else {}
    rare = {"whole tensors": amounts.whole_tensors, "expert replicas": amounts.replicas}
    for name, term in rare.items():
        if (term.value if isinstance(term, Quantity) else term) > 0:
            extra[name] = term
    return extra | {
        "parameters": axes.local_bytes(amounts.weights, "parameter"),
        "gradients": amounts.gradients,
        "optimizer": elements * amounts.states * amounts.state_item_bytes,
        "activations": amounts.activations,
        "batch data": amounts.batch,
        "temporaries": amounts.temporaries,
        "communication": amounts.communication,
    }


def margin_bytes(above: Whole) -> Whole:
    """Bytes lost to rounding and fragmentation beside `above` bytes."""
    return share_of(above, MARGIN)


def stage_peaks(
    parts: Sequence[tuple[StageBytes, BatchAxes]],
    execution: ExecutionModel,
    in_flight: InFlight,
    device: Device,
) -> list[PeakBytes]:
    """Peak of a stage by part: one part runs, the others hold their in-flight values."""
    busy = [part_peak(stage, axes, execution, in_flight, device) for stage, axes in parts]
    if len(parts) <= 1:
        return busy
    idle = [between_calls(stage, axes, execution, in_flight) for stage, axes in parts]
    most = max(range(len(parts)), key=lambda p: sum(busy[p]) - sum(idle[p]))
    return [*idle[:most], busy[most], *idle[most + 1 :]]


def between_calls(
    stage: StageBytes, axes: BatchAxes, execution: ExecutionModel, in_flight: InFlight
) -> PeakBytes:
    """Peak between calls: every call holds its saved values or its gradients."""
    batch, candidates = batch_bytes(stage, in_flight), list[PeakBytes]()
    for case in in_flight.cases():
        all_gradients = case.reduced or execution.contiguous_buffers
        before = waiting_bytes(stage, case)
        for saved, summed in between_points(stage, case, bool(in_flight.beside)):
            gradients = gradient_bytes(
                stage, axes, execution, stage.summed_bytes if all_gradients else summed
            )
            activations = before + (saved if execution.frees_per_call else stage.saved_bytes)
            candidates.append(PeakBytes(batch, gradients, activations, 0, 0))
    return max(candidates, key=sum)


def waiting_bytes(stage: StageBytes, beside: WaitingBeside) -> int:
    """Activations of the micro-batches that wait beside one that runs."""
    saved = stage.saved_bytes - stage.last_saved_bytes
    return int(beside.saved * saved + beside.parted * stage.parted_bytes)


def between_points(
    stage: StageBytes, beside: WaitingBeside, splits: bool
) -> Iterator[tuple[int, int]]:
    """(bytes that wait for backward, bytes of weights whose gradients are complete) between the calls
    of a step of one kind."""
    yield from (
        (point.waiting_bytes, point.complete_gradient_bytes)
        for point in stage.peak_points
        if beside.meets(point) and point.phase == "backward"
    )
    if beside.step != "W":
        yield stage.saved_bytes, 0
    if splits and beside.step != "F":
        yield stage.parted_bytes, 0
    if beside.step == ("W" if splits else "B"):
        yield 0, stage.summed_bytes


def after_forward(
    stage: StageBytes, axes: BatchAxes, execution: ExecutionModel, in_flight: InFlight
) -> PeakBytes:
    """Bytes before the first backward at peak in-flight micro-batches; every step reaches this
    point."""
    there = (
        stage.summed_bytes if in_flight.gradients_accumulated or execution.contiguous_buffers else 0
    )
    activations = (
        int((in_flight.peak - 1) * (stage.saved_bytes - stage.last_saved_bytes)) + stage.saved_bytes
    )
    gradients = gradient_bytes(stage, axes, execution, there)
    return PeakBytes(batch_bytes(stage, in_flight), gradients, activations, 0, 0)


def part_peak(
    stage: StageBytes,
    axes: BatchAxes,
    execution: ExecutionModel,
    in_flight: InFlight,
    device: Device,
) -> PeakBytes:
    """Peak of the calls of one strategy over calls and optimizer step."""
    candidates = list(while_calls_run(stage, axes, execution, in_flight))
    if not execution.contiguous_buffers:
        candidates += while_optimizer_steps(stage, axes, execution, in_flight, device)
    elif execution.steps_at_once:
        candidates.append(while_all_step(stage, axes, execution, in_flight))
    return max(candidates, key=sum)


def while_calls_run(
    stage: StageBytes, axes: BatchAxes, execution: ExecutionModel, in_flight: InFlight
) -> Iterator[PeakBytes]:
    """Bytes at every point while calls run."""
    batch, sent = batch_bytes(stage, in_flight), transfer_buffer_bytes(stage, execution, in_flight)
    in_place = execution.contiguous_buffers
    buffers = [call_buffers(axes, point, stage) for point in stage.peak_points]
    all_gradients = gradient_bytes(stage, axes, execution, stage.summed_bytes)
    largest = min(stage.largest_weight_bytes, stage.summed_bytes)
    for case in in_flight.cases():
        before, others = waiting_bytes(stage, case), case.reduced
        for point, (inside, beside, added) in zip(stage.peak_points, buffers, strict=True):
            if not case.meets(point):
                continue
            gradients = all_gradients
            if not (others or in_place):
                summed = bucket_gradient_bytes(axes, point, stage, largest, in_flight.micro_batches)
                gradients = gradient_bytes(stage, axes, execution, summed)
            activations = before + (
                point.waiting_bytes if execution.frees_per_call else stage.saved_bytes
            )
            if not in_place:
                complete = point.complete_gradient_bytes
                complete += point.weight_bytes * (point.phase == "accumulate")
                if in_flight.chunks > 1:  # those of other chunks may be
                    complete = stage.summed_bytes
                arriving = step_arrival_bytes(axes, complete, stage.summed_bytes, largest)
                beside = beside_call_bytes(axes, point, beside) + arriving * others
            yield PeakBytes(batch, gradients, activations, inside, beside + added * others + sent)


def while_optimizer_steps(
    stage: StageBytes,
    axes: BatchAxes,
    execution: ExecutionModel,
    in_flight: InFlight,
    device: Device,
) -> Iterator[PeakBytes]:
    """Bytes while gradients are reduced, the optimizer steps and updated weights are gathered."""
    batch = batch_bytes(stage, in_flight)
    gradients = gradient_bytes(stage, axes, execution, stage.summed_bytes)
    largest = min(stage.largest_weight_bytes, stage.summed_bytes)
    elements = [n // stage.item_bytes for n in (stage.summed_bytes, largest)]
    summed_item, stepped_item = gradient_item(stage, execution), step_item(stage, execution)
    summed, summed_largest = (n * summed_item for n in elements)
    stepped, biggest = (axes.local_bytes(n * stepped_item, "optimizer") for n in elements)
    bucket = min(gradients, max(BUCKET_BYTES, summed_largest))
    if not scatters_in_step(axes):
        reducing = 0
        if not reduces_in_place(axes) or stage.row_bytes or stage.tied_bytes:
            shared = bucketed_bytes(axes, stage) // stage.item_bytes * summed_item
            reducing = reduce_buffer_bytes(axes, min(bucket, shared), summed, summed_largest)
        tied = gradient_bytes(stage, axes, execution, min(stage.tied_bytes, largest))
        yield PeakBytes(batch, gradients, 0, 0, max(reducing, tied))
    elif in_flight.micro_batches == 1:
        amounts = stage.summed_bytes, stage.summed_bytes, largest
        last = gradient_bytes(stage, axes, execution, scattered_bytes(axes, *amounts))
        yield PeakBytes(batch, last, 0, 0, 0)
    else:
        arriving = step_arrival_bytes(axes, stage.summed_bytes, stage.summed_bytes, largest)
        yield PeakBytes(batch, gradients, 0, 0, arriving)
    travel = partial(while_updates_travel, stage, axes, execution, in_flight)
    if execution.steps_on_host:  # to which gradients leave one by one
        yield PeakBytes(batch, gradients, 0, 0, biggest * (summed_item < stepped_item))
        yield from travel(PeakBytes(batch, 0, 0, 0, 0))
        return
    if summed_item < stepped_item:  # what was summed is widened one by one
        yield PeakBytes(batch, stepped, 0, 0, min(bucket, axes.local_bytes(summed, "optimizer")))
    # where the device is the host, optimizers take tensors one by one
    working = stepped if device.host_copies_hide else execution.step_vectors * biggest
    if axes.compressed_optimizer is not None:
        working = COMPRESSED_OPTIMIZER_VECTORS * elements[0] * FP32_BYTES
    yield PeakBytes(batch, stepped, 0, working, 0)
    yield from travel(PeakBytes(batch, stepped, 0, 0, 0))


def while_updates_travel(
    stage: StageBytes,
    axes: BatchAxes,
    execution: ExecutionModel,
    in_flight: InFlight,
    stepped: PeakBytes,
) -> Iterator[PeakBytes]:
    """Bytes while updated weights are gathered, after the optimizer's step and in the next forward."""
    gather = update_gather_bytes(axes, stage.trained_bytes, stage.largest_weight_bytes)
    if gather is None:
        return
    rounded = 0
    if step_item(stage, execution) > stage.item_bytes or execution.steps_on_host:  # to be sent
        rounded = axes.local_bytes(stage.trained_bytes, "optimizer")
    yield stepped._replace(communication=gather.travelling + rounded)
    if "weights" in execution.overlaps:
        live, travelling = gather.beside_calls(stage.forward_points)
        sent = transfer_buffer_bytes(stage, execution, in_flight) * (travelling > 0)
        if in_flight.chunks > 1 and travelling:  # those of the last one may be on their way
            live += max(waiting_bytes(stage, c) for c in in_flight.cases() if c.step == "F")
        yield PeakBytes(stepped.batch, 0, live, 0, travelling + sent)
        yield PeakBytes(stepped.batch, 0, 0, 0, gather.arriving)


def while_all_step(
    stage: StageBytes, axes: BatchAxes, execution: ExecutionModel, in_flight: InFlight
) -> PeakBytes:
    """Bytes while an optimizer steps all parameters as one list, beside buffers of gradients: copies
    of these in the precision that it steps in, and its working tensors of all of them."""
    summed_item, stepped_item = gradient_item(stage, execution), step_item(stage, execution)
    elements = stage.summed_bytes // stage.item_bytes
    copied = stepped_item * (stepped_item > summed_item)
    working = elements * (copied + execution.step_vectors * FP32_BYTES)
    gradients = gradient_bytes(stage, axes, execution, stage.summed_bytes)
    working_bytes = axes.local_bytes(working, "optimizer")
    return PeakBytes(batch_bytes(stage, in_flight), gradients, 0, working_bytes, 0)


def batch_bytes(stage: StageBytes, in_flight: InFlight) -> int:
    """Bytes of the batch and of batch-only values: global ones, and slices of in-flight
    micro-batches."""
    parts = in_flight.most * stage.batch_copy_bytes if in_flight.micro_batches > 1 else 0
    return stage.batch_only_bytes + in_flight.micro_batches * stage.batch_input_bytes + int(parts)


def gradient_bytes(
    stage: StageBytes,
    axes: BatchAxes,
    execution: ExecutionModel,
    summed: int,
    sharded_as: str = "gradient",
) -> int:
    """Bytes of the gradients of `summed` bytes of weights, sharded like `sharded_as`."""
    item_bytes = gradient_item(stage, execution) + execution.unreduced_item_bytes
    amount = summed // stage.item_bytes * item_bytes
    return axes.local_bytes(amount, sharded_as)


def gradient_item(stage: StageBytes, execution: ExecutionModel) -> int:
    """Bytes of an element of a gradient while it is summed."""
    return execution.gradient_item_bytes or stage.item_bytes


def step_item(stage: StageBytes, execution: ExecutionModel) -> int:
    """Bytes of an element that the optimizer steps on, and of its gradient then."""
    return execution.stepped_item_bytes or gradient_item(stage, execution)


def transfer_buffer_bytes(stage: StageBytes, execution: ExecutionModel, in_flight: InFlight) -> int:
    """Bytes of values being sent to and received from neighbouring stages."""
    if execution.contiguous_buffers:
        waiting = ceil(in_flight.peak) if execution.keeps_sent else 1
        return (waiting + 1) * stage.outgoing_bytes
    sent = in_flight.most * in_flight.chunks + 1
    received = min(2, in_flight.micro_batches) * in_flight.chunks
    if not stage.outgoing_bytes:  # a last stage sends gradients, which wait where backward is split
        received += ceil(in_flight.most * in_flight.chunks) - 1
    if stage.message_bytes or stage.codec_bytes:  # values are freed once encoded, messages stay
        leaving = stage.outgoing_bytes + int(sent * stage.message_bytes)
        return leaving + received * stage.incoming_bytes + stage.codec_bytes
    return int(sent * stage.outgoing_bytes) + received * stage.incoming_bytes
