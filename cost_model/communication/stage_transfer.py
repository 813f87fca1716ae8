"""Transfers of activations and gradients between pipeline stages: messages and their codecs.

The codec is part of the transfer: it blocks the stages on both sides, and generated programs hide
no send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.compression.program import CompressionProgram
from ...ir.compression.registry import PROGRAMS
from ...ir.devices.cluster import Cluster, Device, Link
from ...ir.model.tensor import TensorType
from ...ir.plan.plan import Plan
from ...ir.plan.program import compressible
from ...ir.plan.strategy import ROLES
from ...ir.plan.workload import CompressibleTransfer
from .collective import send_link, send_seconds
from .compressed_collective import FP32_BYTES, kernel_seconds, lowered


class TransferPayload(NamedTuple):
    """Bytes of a micro-batch sent to the next stage, and the large values among them."""

    bytes: int
    large: CompressibleTransfer


class StageTransfer(NamedTuple):
    """One-way transfer between stages: bytes and seconds of messages, seconds to encode and
    decode."""

    sent_bytes: int
    transfer_seconds: float
    codec_seconds: float

    @property
    def seconds(self) -> float:
        return self.transfer_seconds + self.codec_seconds


def price_transfer(
    payload: TransferPayload, link: Link, program: CompressionProgram | None, device: Device
) -> StageTransfer:
    """Cost of one transfer; large values are sent as messages of `program` if given."""
    if program is None or not payload.large.elements:
        return StageTransfer(payload.bytes, send_seconds(payload.bytes, link), 0.0)
    pipeline, sent = lowered(program), message_bytes(payload, program)
    chunk = pipeline.chunk(payload.large.elements)
    codec = sum(kernel_seconds(kernel, chunk, device) for kernel in pipeline.kernels)
    return StageTransfer(sent, send_seconds(sent, link), codec)


def message_bytes(payload: TransferPayload, program: CompressionProgram) -> int:
    """Bytes sent for one payload under a compression program."""
    sent = lowered(program).sent_bytes(payload.large.elements)
    return payload.bytes - payload.large.bytes + sent


def value_bytes(kind: TensorType, program: CompressionProgram | None) -> int:
    """Bytes sent for one value."""
    if program is None or not compressible(kind):
        return kind.bytes
    return lowered(program).sent_bytes(kind.elements)


def coding_bytes(
    leaving: TransferPayload, entering: TransferPayload, program: CompressionProgram
) -> int:
    """Peak codec buffer bytes beyond values and sent messages: a copy in fp32, padded to full
    tiles, and a received message."""
    pipeline, most = lowered(program), 0
    for large in (leaving.large, entering.large):
        chunk = pipeline.chunk(large.elements)
        cast = large.bytes != large.elements * FP32_BYTES
        padded = chunk != large.elements
        most = max(most, (cast + padded) * chunk * FP32_BYTES)
    return most + (message_bytes(entering, program) if entering.large.elements else 0)


def price_transfers(
    payloads: Sequence[TransferPayload],
    links: Sequence[Link],
    program: CompressionProgram | None,
    device: Device,
) -> list[StageTransfer]:
    """Transfers from every stage to the next one (cached by payload and link)."""
    cache: dict[tuple[TransferPayload, int], StageTransfer] = {}
    transfers: list[StageTransfer] = []
    for payload, link in zip(payloads, links, strict=True):
        key = payload, id(link)
        if key not in cache:
            cache[key] = price_transfer(payload, link, program, device)
        transfers.append(cache[key])
    return transfers


def plan_transfers(plan: Plan, cluster: Cluster | None = None) -> list[StageTransfer]:
    """Transfers from every stage of a plan to the next; on another `cluster` of equal size if
    given."""
    cluster = cluster or plan.cluster
    links = boundary_links(len(plan.stages), cluster)
    return price_transfers(plan_payloads(plan), links, transfer_program(plan), cluster.device)


def plan_payloads(plan: Plan) -> list[TransferPayload]:
    return [TransferPayload(stage.transfer_bytes, stage.compressible) for stage in plan.stages]


def transfer_program(plan: Plan) -> CompressionProgram | None:
    """The compression program of a plan's stage transfers, if any."""
    programs = (
        PROGRAMS[c.program]
        for c in plan.compression
        if c.subject == "activations" and ROLES[c.role].stages
    )
    return next(programs, None)


def boundary_links(stages: int, cluster: Cluster) -> list[Link]:
    """The link from each of `stages` equal stages to the next one."""
    stride = cluster.devices // stages
    return [send_link(number * stride, stride, cluster) for number in range(stages)]
