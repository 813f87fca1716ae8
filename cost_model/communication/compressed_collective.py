"""Seconds, bytes and states of a compression program, for a bucket over ranks of a cluster.

Wires are priced like any collective, level by level where the program says so. A kernel takes one pass
over memory or its arithmetic, whichever is longer, as any operator does.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import ceil, log2

from msgspec import Struct
from msgspec.structs import astuple

from ...ir.compression.identity import uncompressed
from ...ir.compression.kernel import Kernel, Pipeline, Step, Transfer
from ...ir.compression.lower import lower
from ...ir.compression.program import Algorithm, Program
from ...ir.compression.stage import Hadamard, Quantize, Reduce, Stage
from ...ir.devices.cluster import Cluster, Device
from ...ir.program import BUCKET_BYTES
from .collective import Leg, collective_legs, send_leg, send_link

FP32_BYTES = 4
lowered = cache(lower)
ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
# Instructions per element: four words of Philox take ten rounds of two wide products and four xors.
PHILOX = 10 * (2 * 3 + 4) / 4
QUANTIZE, OTHER = 4, 2


class Priced(Struct, frozen=True):
    """One rank's share of one compressed collective.

    `state_bytes` live between steps; of a weight program's replica, which is the model itself, none.
    """

    wire_bytes: int
    wire_seconds: float
    codec_seconds: float
    state_bytes: int

    @property
    def seconds(self) -> float:
        """Without overlap."""
        return self.wire_seconds + self.codec_seconds


def price(program: Program, elements: int, size: int, stride: int, cluster: Cluster) -> Priced:
    """A bucket of `elements` of one rank's input over `size` ranks that lie `stride` apart.

    Raises UsageError for illegal programs.
    """
    inner = cluster.near(size, stride)
    pipeline = lowered(program, inner, size // inner)
    chunk = pipeline.chunk(elements)
    legs = [
        leg
        for transfer in pipeline.transfers
        for leg in transfer_legs(transfer, chunk, size, stride, inner, cluster)
    ]
    return Priced(
        pipeline.sent_bytes(elements),
        sum(leg.seconds for leg in legs),
        sum(kernel_seconds(kernel, chunk, cluster.device) for kernel in pipeline.kernels),
        state_bytes(pipeline, elements),
    )


def price_step(
    program: Program, elements: int, size: int, stride: int, cluster: Cluster, small: float = 0.0
) -> Priced:
    """All buckets in which `elements` of one rank's input travel, one after the other; those that lie
    in small tensors, a part `small` of them, in fp32."""
    few = round(elements * small)
    parts = [
        _buckets(one, count, size, stride, cluster)
        for one, count in ((program, elements - few), (uncompressed(program), few))
        if count
    ]
    return Priced(*(sum(column) for column in zip(*map(astuple, parts), strict=True)))


def price_optimizer(
    known: Algorithm, elements: int, size: int, stride: int, cluster: Cluster, small: float = 0.0
) -> Priced:
    """What an optimizer that talks itself sends in a step in the long run, for so many weights."""
    parts = []
    for program in known.programs:
        count = elements * program.vectors // (size if program.result == "all_gather" else 1)
        rate = known.rate(program)
        priced = price_step(program, count, size, stride, cluster, small)
        parts.append([rate * amount for amount in astuple(priced)])
    sent, wire, codec, _ = (sum(column) for column in zip(*parts, strict=True))
    return Priced(round(sent), wire, codec, 0)


def kept_vectors(known: Algorithm) -> int:
    """Vectors as long as the weights that such an optimizer keeps, on two ranks or more."""
    kept = float(known.vectors)
    for program in known.programs:
        pipeline = lowered(program, 1, 2)
        ratio = pipeline.select.ratio if pipeline.select else 1
        part = program.vectors / (pipeline.chunks * ratio)
        kept += part * sum(state.chunks for state in pipeline.states)
    return ceil(kept)


def _buckets(program: Program, elements: int, size: int, stride: int, cluster: Cluster) -> Priced:
    pieces = size if program.result == "all_gather" else 1
    count = max(1, round(elements * pieces * FP32_BYTES / BUCKET_BYTES))
    one = price(program, -(-elements // count), size, stride, cluster)
    return Priced(
        one.wire_bytes * count,
        one.wire_seconds * count,
        one.codec_seconds * count,
        one.state_bytes * count,
    )


def exchange_bytes(
    program: Program, elements: int, size: int, stride: int, cluster: Cluster
) -> int:
    """What a bucket whose whole tensors have `elements` takes while it is exchanged, compressed or, at
    first and if it is small, not: a copy of what is given, and from step to step what was made last
    and what is being made."""
    inner = cluster.near(size, stride)
    pipelines = [lowered(one, inner, size // inner) for one in (program, uncompressed(program))]
    given = elements // (size if program.result == "all_gather" else 1)
    chunk, padded = pipelines[0].chunk(given), FP32_BYTES * pipelines[0].padded(given)
    return padded + max(
        sum(pair)
        for pipeline in pipelines
        for pair in pairwise((padded, *(_made(step, chunk) for step in pipeline.steps)))
    )


def _made(step: Step, chunk: int) -> int:
    """Bytes of what a step leaves."""
    if isinstance(step, Transfer):
        ranks = step.size if step.kind == "all_gather" else 1
        return ranks * step.count * step.wire.bytes(chunk)
    if isinstance(step, Kernel):
        item = FP32_BYTES * chunk if step.target is None else step.target.bytes(chunk)
        return step.chunks * item
    return FP32_BYTES * chunk


def transfer_legs(
    transfer: Transfer, chunk: int, size: int, stride: int, inner: int, cluster: Cluster
) -> tuple[Leg, ...]:
    """How messages of `chunk` elements travel."""
    amount = transfer.count * transfer.wire.bytes(chunk)
    if transfer.kind == "send":
        return (send_leg(amount, send_link(0, stride, cluster)),)
    if transfer.kind == "all_gather":
        amount *= transfer.size
    if transfer.level == "all":
        return collective_legs(transfer.kind, amount, size, stride, cluster)
    apart = stride if transfer.level == "inner" else stride * inner
    link = cluster.level_for(apart, transfer.size)
    return (Leg(transfer.kind, amount, transfer.size, link),)


def kernel_seconds(kernel: Kernel, chunk: int, device: Device) -> float:
    """One pass over what is read and written, or its arithmetic."""
    moved = kernel_bytes(kernel, chunk) / device.memory_bandwidth_bytes_per_second
    work = chunk * kernel.chunks * kernel_operations(kernel) / device.peak("float32")
    return device.launch_overhead_seconds + max(moved, work)


def kernel_bytes(kernel: Kernel, chunk: int) -> int:
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


def kernel_operations(kernel: Kernel) -> float:
    """Instructions per element of the result; those before a reduction count once per rank."""
    total, ranks = 0.0, kernel.ranks
    for stage in kernel.body:
        total += ranks * stage_operations(stage, kernel.ranks)
        ranks = 1 if isinstance(stage, Reduce) else ranks
    return total


def stage_operations(stage: Stage, ranks: int) -> float:
    """Instructions per element and rank."""
    if isinstance(stage, Hadamard):
        return log2(stage.block)
    if isinstance(stage, Quantize):
        return QUANTIZE + (PHILOX if stage.rounding == "stochastic" else 0)
    if isinstance(stage, Reduce):
        sorts = {"trimmed_mean": 1, "median": 1, "phocas": 2}.get(stage.rule, 0)
        return 1 + sorts * 3 * (ranks - 1) / 2
    return OTHER


def state_bytes(pipeline: Pipeline, elements: int) -> int:
    """What a pipeline keeps between steps, besides weights."""
    chunk = pipeline.chunk(elements)
    return sum(
        state.chunks * chunk * ELEMENT_BYTES[state.element]
        for state in pipeline.states
        if state.name != "replica"
    )
