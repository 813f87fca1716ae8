"""Sums of activations over ranks that travel compressed, inside calls: which do, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.compression.program import Program
from ...ir.compression.registry import PROGRAMS
from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.program import SMALL_BYTES
from .compressed_collective import FP32_BYTES, Priced, lowered, price


class Reductions:
    """Programs by the axis that they sum over."""

    def __init__(self, programs: Mapping[str, Program], cluster: Cluster) -> None:
        self.programs, self.cluster = dict(programs), cluster
        self.known: dict[tuple[str, float, int, int, int], Priced] = {}

    def applies(self, axis: str, amount: float, item: int) -> bool:
        """Whether a sum of so many bytes travels compressed; `item` bytes of an element, 0 for what
        cannot be rounded."""
        return bool(item) and axis in self.programs and amount >= SMALL_BYTES

    def priced(self, axis: str, amount: float, item: int, size: int, stride: int) -> Priced | None:
        """The price of a sum, None where it travels as it is."""
        if size == 1 or not self.applies(axis, amount, item):
            return None
        key = axis, amount, item, size, stride
        if key not in self.known:
            elements = round(amount / item)
            self.known[key] = price(self.programs[axis], elements, size, stride, self.cluster)
        return self.known[key]

    def coding_bytes(self, axis: str, amount: float, item: int, size: int, stride: int) -> int:
        """What a sum takes beside operand and result at its worst moment.

        The result in fp32, padded to whole messages, is there with messages of both ways. In another
        type, or of another length, it is a copy of the operand before.
        """
        if size == 1 or not self.applies(axis, amount, item):
            return 0
        inner, elements = self.cluster.near(size, stride), round(amount / item)
        pipeline = lowered(self.programs[axis], inner, size // inner)
        chunk, padded = pipeline.chunk(elements), pipeline.padded(elements)
        there, back = (t.count * t.wire.bytes(chunk) for t in pipeline.transfers)
        beside = [2 * there + back]
        if item != FP32_BYTES:
            beside += [padded * item if padded != elements else 0, round(amount)]
        return padded * FP32_BYTES + max(beside) - round(amount)


def reductions_of(
    plan: Plan, strategy: Strategy, cluster: Cluster | None = None
) -> Reductions | None:
    """What a plan sums compressed inside the calls of one of its strategies."""
    programs = {
        c.role: PROGRAMS[c.program]
        for c in plan.compression
        if c.subject == "activations" and c.strategy == strategy and not ROLES[c.role].stages
    }
    return Reductions(programs, cluster or plan.cluster) if programs else None
