"""Compressed all-reduces of activations inside calls: selection and cost."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.compression.program import CompressionProgram
from ...ir.compression.registry import PROGRAMS
from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Plan
from ...ir.plan.program import SMALL_BYTES
from ...ir.plan.strategy import ROLES, Strategy
from .collective import CommGroup
from .compressed_collective import FP32_BYTES, CompressedCost, pipeline_over, price


class CompressedReductions:
    """Compression programs by the mesh axis of the all-reduce."""

    def __init__(self, programs: Mapping[str, CompressionProgram], cluster: Cluster) -> None:
        self.programs, self.cluster = dict(programs), cluster
        self.cost_cache: dict[tuple[str, float, int, CommGroup], CompressedCost] = {}

    def compresses(self, axis: str, amount: float, item: int) -> bool:
        """Whether an all-reduce of `amount` bytes is compressed; `item`: bytes per element, 0 for
        values that must stay exact."""
        return bool(item) and axis in self.programs and amount >= SMALL_BYTES

    def price(self, axis: str, amount: float, item: int, group: CommGroup) -> CompressedCost | None:
        """Cost of an all-reduce; None where it is not compressed."""
        if group.size == 1 or not self.compresses(axis, amount, item):
            return None
        key = axis, amount, item, group
        if key not in self.cost_cache:
            elements = round(amount / item)
            self.cost_cache[key] = price(self.programs[axis], elements, group, self.cluster)
        return self.cost_cache[key]

    def codec_bytes(self, axis: str, amount: float, item: int, group: CommGroup) -> int:
        """Peak bytes of buffers of an all-reduce beyond operand and result.

        The fp32 result, padded to full messages, is live with messages of both directions. For
        another dtype or length, a copy of the operand comes first."""
        if group.size == 1 or not self.compresses(axis, amount, item):
            return 0
        pipeline = pipeline_over(self.programs[axis], group, self.cluster)
        elements = round(amount / item)
        chunk, padded = pipeline.chunk(elements), pipeline.padded(elements)
        there, back = (t.count * t.message_format.bytes(chunk) for t in pipeline.transfers)
        beside = [2 * there + back]
        if item != FP32_BYTES:
            beside += [padded * item if padded != elements else 0, round(amount)]
        return padded * FP32_BYTES + max(beside) - round(amount)


def compressed_reductions(
    plan: Plan, strategy: Strategy, cluster: Cluster | None = None
) -> CompressedReductions | None:
    """The compressed all-reduces inside calls under one of a plan's strategies, if any."""
    programs = {
        c.role: PROGRAMS[c.program]
        for c in plan.compression
        if c.subject == "activations" and c.strategy == strategy and not ROLES[c.role].stages
    }
    return CompressedReductions(programs, cluster or plan.cluster) if programs else None
