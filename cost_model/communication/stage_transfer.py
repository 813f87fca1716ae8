"""What it takes to get from one pipeline stage to the next: messages, and their codecs.

A codec is part of the hop: the stages on both sides are busy with it as they are with nothing else, and
no send of the generated programs is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.compression.program import Program
from ...ir.compression.registry import PROGRAMS
from ...ir.devices.cluster import Cluster, Device, Link
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES
from ...ir.plan.workload import Large
from ...ir.program import compressible
from ...ir.tensor import TensorType
from .collective import send_link, send_seconds
from .compressed_collective import FP32_BYTES, kernel_seconds, lowered


class Crossing(NamedTuple):
    """Bytes of a micro-batch that go from a stage to the next, of them those of large values."""

    bytes: int
    large: Large


class Hop(NamedTuple):
    """What travels for a crossing, one way: bytes and seconds on the wire, seconds to encode and to
    decode."""

    wire_bytes: int
    wire_seconds: float
    codec_seconds: float

    @property
    def seconds(self) -> float:
        return self.wire_seconds + self.codec_seconds


def hop_of(crossing: Crossing, link: Link, program: Program | None, device: Device) -> Hop:
    """The price of a crossing whose large values travel as a program's messages, if there is one."""
    if program is None or not crossing.large.elements:
        return Hop(crossing.bytes, send_seconds(crossing.bytes, link), 0.0)
    pipeline, sent = lowered(program), message_bytes(crossing, program)
    chunk = pipeline.chunk(crossing.large.elements)
    codec = sum(kernel_seconds(kernel, chunk, device) for kernel in pipeline.kernels)
    return Hop(sent, send_seconds(sent, link), codec)


def message_bytes(crossing: Crossing, program: Program) -> int:
    """What is sent for a crossing."""
    sent = lowered(program).sent_bytes(crossing.large.elements)
    return crossing.bytes - crossing.large.bytes + sent


def value_bytes(kind: TensorType, program: Program | None) -> int:
    """What is sent for one value."""
    if program is None or not compressible(kind):
        return kind.bytes
    return lowered(program).sent_bytes(kind.elements)


def coding_bytes(leaving: Crossing, entering: Crossing, program: Program) -> int:
    """Copies that are there while a value is encoded or decoded, beside itself and what is sent: in
    fp32, padded to whole tiles, and a message that has arrived."""
    pipeline, most = lowered(program), 0
    for large in (leaving.large, entering.large):
        chunk = pipeline.chunk(large.elements)
        cast = large.bytes != large.elements * FP32_BYTES
        padded = chunk != large.elements
        most = max(most, (cast + padded) * chunk * FP32_BYTES)
    return most + (message_bytes(entering, program) if entering.large.elements else 0)


def hops(
    crossings: Sequence[Crossing], links: Sequence[Link], program: Program | None, device: Device
) -> list[Hop]:
    """Every stage's hop to the next one."""
    known: dict[tuple[Crossing, int], Hop] = {}
    found = []
    for crossing, link in zip(crossings, links, strict=True):
        key = crossing, id(link)
        if key not in known:
            known[key] = hop_of(crossing, link, program, device)
        found.append(known[key])
    return found


def plan_hops(plan: Plan, cluster: Cluster | None = None) -> list[Hop]:
    """Every stage's hop to the next one in a plan; on another `cluster` of as many devices if given."""
    cluster = cluster or plan.cluster
    links = boundary_links(len(plan.stages), cluster)
    return hops(plan_crossings(plan), links, hop_program(plan), cluster.device)


def plan_crossings(plan: Plan) -> list[Crossing]:
    return [Crossing(stage.transfer_bytes, stage.large) for stage in plan.stages]


def hop_program(plan: Plan) -> Program | None:
    """The program by which values travel between a plan's stages, if there is one."""
    found = (
        PROGRAMS[c.program]
        for c in plan.compression
        if c.subject == "activations" and ROLES[c.role].stages
    )
    return next(found, None)


def boundary_links(stages: int, cluster: Cluster) -> list[Link]:
    """The link from each of so many equal stages to the next one."""
    stride = cluster.devices // stages
    return [send_link(number * stride, stride, cluster) for number in range(stages)]
