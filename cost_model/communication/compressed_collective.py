"""Seconds, bytes and states of a compression program, for a bucket over ranks of a cluster.

Messages are priced like any collective, level by level where the program says so. A kernel takes
the longer of its memory pass and its arithmetic, like any operator."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import ceil, log2

from msgspec import Struct
from msgspec.structs import astuple

from ...ir.compression.identity import uncompressed
from ...ir.compression.kernel import (
    CompressionKernel,
    KernelPipeline,
    KernelPipelineStep,
    MessageTransfer,
)
from ...ir.compression.lower import lower
from ...ir.compression.program import CompressionAlgorithm, CompressionProgram
from ...ir.compression.stage import CompressionStage, Hadamard, Quantize, Reduce
from ...ir.devices.cluster import Cluster, Device
from ...ir.plan.program import BUCKET_BYTES
from .collective import CommGroup, Leg, collective_legs, send_leg, send_link

FP32_BYTES = 4
lowered = cache(lower)
ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
# Instructions per element: four words of Philox take ten rounds of two wide products and four xors.
PHILOX = 10 * (2 * 3 + 4) / 4
QUANTIZE, OTHER = 4, 2


class CompressedCost(Struct, frozen=True):
    """Cost of one compressed collective on one rank.

    `state_bytes` live between steps; a weight program's replica is the model itself and counts 0.
    """

    sent_bytes: int
    transfer_seconds: float
    codec_seconds: float
    state_bytes: int

    @property
    def seconds(self) -> float:
        """Without overlap."""
        return self.transfer_seconds + self.codec_seconds


def pipeline_over(
    program: CompressionProgram, group: CommGroup, cluster: Cluster
) -> KernelPipeline:
    """A program's kernels and transfers for a group, by its ranks inside and across nodes."""
    inner = cluster.neighbours_per_node(*group)
    return lowered(program, inner, group.size // inner)


def price(
    program: CompressionProgram, elements: int, group: CommGroup, cluster: Cluster
) -> CompressedCost:
    """Cost of a bucket of `elements` of one rank's input over a group of ranks.

    Raises UsageError for illegal programs.
    """
    pipeline = pipeline_over(program, group, cluster)
    chunk = pipeline.chunk(elements)
    legs = [
        leg
        for transfer in pipeline.transfers
        for leg in transfer_legs(transfer, chunk, group, cluster)
    ]
    return CompressedCost(
        pipeline.sent_bytes(elements),
        sum(leg.seconds for leg in legs),
        sum(kernel_seconds(kernel, chunk, cluster.device) for kernel in pipeline.kernels),
        state_bytes(pipeline, elements),
    )


def price_step(
    program: CompressionProgram,
    elements: int,
    group: CommGroup,
    cluster: Cluster,
    small: float = 0.0,
) -> CompressedCost:
    """Cost of all buckets of `elements` of one rank's input, one after the other; the fraction
    `small` that belongs to small tensors is sent in fp32."""
    few = round(elements * small)
    parts = [
        _price_buckets(one, count, group, cluster)
        for one, count in ((program, elements - few), (uncompressed(program), few))
        if count
    ]
    return CompressedCost(*(sum(column) for column in zip(*map(astuple, parts), strict=True)))


def price_optimizer(
    algorithm: CompressionAlgorithm,
    elements: int,
    group: CommGroup,
    cluster: Cluster,
    small: float = 0.0,
) -> CompressedCost:
    """Mean cost per step of a compressed optimizer's communication for `elements` weights. Ranks that
    meet a few others alone are as far apart as the group is wide."""
    if algorithm.meets_some:
        some = min(algorithm.schedule.ready, group.size)
        group = CommGroup(some, group.stride * (group.size // some))
    parts: list[list[float]] = []
    for program in algorithm.programs:
        shards = group.size if program.collective == "all_gather" else 1
        count = elements * program.vectors // shards
        rate = algorithm.rate(program)
        priced = price_step(program, count, group, cluster, small)
        parts.append([rate * amount for amount in astuple(priced)])
    sent, transfer_time, codec, _ = (sum(column) for column in zip(*parts, strict=True))
    return CompressedCost(round(sent), transfer_time, codec, 0)


def state_vectors(algorithm: CompressionAlgorithm) -> int:
    """State vectors (in units of the weights) of a compressed optimizer on two ranks or more."""
    vectors = float(algorithm.vectors)
    for program in algorithm.programs:
        pipeline = lowered(program, 1, 2)
        ratio = pipeline.select.ratio if pipeline.select else 1
        part = program.vectors / (pipeline.chunks * ratio)
        vectors += part * sum(state.chunks for state in pipeline.states)
    return ceil(vectors)


def _price_buckets(
    program: CompressionProgram, elements: int, group: CommGroup, cluster: Cluster
) -> CompressedCost:
    shards = group.size if program.collective == "all_gather" else 1
    count = max(1, round(elements * shards * FP32_BYTES / BUCKET_BYTES))
    one = price(program, -(-elements // count), group, cluster)
    return CompressedCost(
        one.sent_bytes * count,
        one.transfer_seconds * count,
        one.codec_seconds * count,
        one.state_bytes * count,
    )


def exchange_bytes(
    program: CompressionProgram, elements: int, group: CommGroup, cluster: Cluster
) -> int:
    """Peak buffer bytes while a bucket of `elements` (full tensors) is exchanged, compressed or, in
    early steps and for small tensors, not: a copy of the input, and the outputs of two consecutive
    steps."""
    pipelines = [pipeline_over(one, group, cluster) for one in (program, uncompressed(program))]
    input_elements = elements // (group.size if program.collective == "all_gather" else 1)
    chunk, padded = (
        pipelines[0].chunk(input_elements),
        FP32_BYTES * pipelines[0].padded(input_elements),
    )
    return padded + max(
        sum(pair)
        for pipeline in pipelines
        for pair in pairwise((padded, *(_output_bytes(step, chunk) for step in pipeline.steps)))
    )


def _output_bytes(step: KernelPipelineStep, chunk: int) -> int:
    """Bytes of a step's output."""
    if isinstance(step, MessageTransfer):
        ranks = step.size if step.kind == "all_gather" else 1
        return ranks * step.count * step.message_format.bytes(chunk)
    if isinstance(step, CompressionKernel):
        item = FP32_BYTES * chunk if step.target is None else step.target.bytes(chunk)
        return step.chunks * item
    return FP32_BYTES * chunk


def transfer_legs(
    transfer: MessageTransfer, chunk: int, group: CommGroup, cluster: Cluster
) -> tuple[Leg, ...]:
    """Legs of a transfer of messages of `chunk` elements."""
    amount = transfer.count * transfer.message_format.bytes(chunk)
    if transfer.kind == "send":
        return (send_leg(amount, send_link(0, group.stride, cluster)),)
    if transfer.kind == "all_gather":
        amount *= transfer.size
    if transfer.level == "all":
        return collective_legs(transfer.kind, amount, group, cluster)
    inner = cluster.neighbours_per_node(*group)
    apart = group.stride if transfer.level == "inner" else group.stride * inner
    link = cluster.slowest_link(apart, transfer.size)
    return (Leg(transfer.kind, amount, transfer.size, link),)


def kernel_seconds(kernel: CompressionKernel, chunk: int, device: Device) -> float:
    """Seconds of one kernel: the longer of its memory pass and its arithmetic, plus launch."""
    moved = kernel_bytes(kernel, chunk) / device.memory_bandwidth_bytes_per_second
    work = chunk * kernel.chunks * kernel_operations(kernel) / device.peak("float32")
    return device.launch_overhead_seconds + max(moved, work)


def kernel_bytes(kernel: CompressionKernel, chunk: int) -> int:
    """Bytes that a kernel reads and writes."""
    flat = kernel.chunks * chunk
    read = flat * FP32_BYTES
    if kernel.source is not None:
        read = kernel.ranks * kernel.chunks * kernel.source.bytes(chunk)
    written = flat * FP32_BYTES
    if kernel.target is not None:
        written = kernel.chunks * kernel.target.bytes(chunk)
    elif kernel.partial:
        written //= kernel.tile
    states = sum(ELEMENT_BYTES[o.element] * (1 + o.written) for o in kernel.operands)
    return read + written + flat * states


def kernel_operations(kernel: CompressionKernel) -> float:
    """Instructions per element of the result; those before a reduction count once per rank."""
    total, ranks = 0.0, kernel.ranks
    for stage in kernel.body:
        total += ranks * stage_operations(stage, kernel.ranks)
        ranks = 1 if isinstance(stage, Reduce) else ranks
    return total


def stage_operations(stage: CompressionStage, ranks: int) -> float:
    """Instructions per element and rank."""
    if isinstance(stage, Hadamard):
        return log2(stage.block)
    if isinstance(stage, Quantize):
        return QUANTIZE + (PHILOX if stage.rounding == "stochastic" else 0)
    if isinstance(stage, Reduce):
        sorts = {"trimmed_mean": 1, "median": 1, "phocas": 2}.get(stage.rule, 0)
        return 1 + sorts * 3 * (ranks - 1) / 2
    return OTHER


def state_bytes(pipeline: KernelPipeline, elements: int) -> int:
    """Bytes of a pipeline's states between steps, without weight replicas."""
    chunk = pipeline.chunk(elements)
    return sum(
        state.chunks * chunk * ELEMENT_BYTES[state.element]
        for state in pipeline.states
        if state.name != "replica"
    )
