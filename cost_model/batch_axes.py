"""The axes that split the batch: what each device keeps a part of, and what it costs to put together.

    zero3   forward   gather weights of a call │ run it │ free
            backward  gather again │ run │ reduce-scatter gradients
    dp      after the last micro-batch: all-reduce gradients
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from ..ir.amounts import Moment
from ..ir.cluster import Cluster
from ..ir.compression.program import Program
from ..ir.compression.registry import PROGRAMS
from ..ir.plan import Plan
from ..ir.program import BUCKET_BYTES
from ..ir.strategy import ROLES, Strategy
from .collective import collective_seconds
from .compression import FP32_BYTES, Priced, price_step

Axis = tuple[str, int, int]  # role, size, ranks between neighbours
Axes = list[Axis]
Subject = Literal["gradients", "weights"]
Compression = Mapping[tuple[Subject, str], Program]  # by what travels, and the role it travels along


class BatchAxes:
    """What the batch axes of a strategy cut, and the seconds to gather and to add up."""

    def __init__(
        self, strategy: Strategy, cluster: Cluster, gradient_scale: float = 1.0, item: int = 4,
        compression: Compression | None = None,
    ) -> None:  # fmt: skip
        """`gradient_scale`: bytes of a gradient sent, per byte of its parameter, of which an element
        has `item`."""
        self.cluster, self.scale, self.item = cluster, gradient_scale, item
        self.compression = compression or {}
        axes = [(r, n, strategy.stride(r)) for r, n in strategy.axes]
        self.sharded = [a for a in axes if ROLES[a[0]].shards]
        self.inside = [a for a in axes if a[:2] in strategy.inside]
        self.replicas = [
            a for a in axes if ROLES[a[0]].batch and a not in self.sharded + self.inside
        ]
        self.shards = frozenset(s for r, _, _ in self.sharded for s in ROLES[r].shards)
        self.priced: dict[tuple[Program, float, Axis, float], Priced] = {}
        self.known: dict[tuple[str, float, tuple[Axis, ...]], float] = {}
        self.ways = prod(size for _, size, _ in self.sharded)

    def pieces(self, what: str) -> int:
        return self.ways if what in self.shards else 1

    def state_bytes(self, held: int, summed: dict[str, int], over_all: bool) -> int:
        """Bytes of held weights whose optimizer states lie here. `over_all`: weights that are whole
        along an axis inside a replica (`summed` there) have their states cut along it too."""
        if "optimizer" not in self.shards and not over_all:
            return held
        bytes_here = float(held)
        for role, size, _ in self.inside if over_all else ():
            bytes_here -= summed.get(role, 0) * (1 - 1 / size)
        return int(max(bytes_here, 0.0)) // self.ways

    def seconds(self, kind: str, amount: float, axes: Axes) -> float:
        key = kind, amount, tuple(axes)
        if key not in self.known:
            self.known[key] = sum(
                float(collective_seconds(kind, amount, size, stride, self.cluster))
                for _, size, stride in axes
            )
        return self.known[key]

    def step_seconds(
        self, subject: Subject, kind: str, amount: float, axes: Axes, small: float = 0.0
    ) -> float:
        """A collective once per step, compressed along the axes where it is, but for a part `small`
        of it in small tensors."""
        seconds = 0.0
        for axis in axes:
            priced = self.compressed(subject, amount, axis, small)
            seconds += self.seconds(kind, amount, [axis]) if priced is None else priced.seconds
        return seconds

    def compressed(
        self, subject: Subject, amount: float, axis: Axis, small: float = 0.0
    ) -> Priced | None:
        """The price of what travels compressed along an axis, None where it does not."""
        role, size, stride = axis
        program = self.compression.get((subject, role))
        if program is None or not amount:
            return None
        key = program, amount, axis, small
        if key not in self.priced:
            elements = int(amount / self.item / (self.scale if subject == "gradients" else 1))
            elements //= size if program.result == "all_gather" else 1
            self.priced[key] = price_step(
                program, elements, size, stride, self.cluster, small
            )
        return self.priced[key]

    def compression_bytes(self, held: int, small: int) -> int:
        """What compression keeps between steps for trained weights of `held` bytes, `small` of them in
        small tensors: errors, and of
        weights the replica that all ranks have and the exact piece that the optimizer steps on."""
        total, part = 0, held * self.scale / self.pieces("optimizer")
        for subject, role in self.compression:
            (axis,) = (a for a in (*self.replicas, *self.sharded) if a[0] == role)
            gathered = subject == "weights" or axis in self.sharded
            priced = self.compressed(
                subject, held if gathered else part, axis, small / max(held, 1)
            )
            total += priced.state_bytes if priced else 0
            if subject == "weights":
                total += held // self.item * FP32_BYTES + held // self.pieces("optimizer")
        return total

    def gather_seconds(self, amount: int) -> float:
        """Weights of one call, before each of its pieces."""
        return self.seconds("all_gather", amount, self.sharded) if "parameter" in self.shards else 0.0

    def scatter_seconds(self, amount: int) -> float:
        """Gradients of one call, after its backward."""
        if "gradient" not in self.shards:
            return 0.0
        return self.seconds("reduce_scatter", amount * self.scale, self.sharded)

    def reduce_seconds(self, held: int, summed: dict[str, int], small: float = 0.0) -> float:
        """Once per step: gradients over plain axes and the tensor axes, or scattered to their owners."""
        part = self.scale / self.pieces("optimizer")
        seconds = self.step_seconds("gradients", "all_reduce", held * part, self.replicas, small)
        for axis in self.inside:
            seconds += self.seconds("all_reduce", summed[axis[0]] * part, [axis])
        if "optimizer" in self.shards and "gradient" not in self.shards:
            amount = held * self.scale
            seconds += self.step_seconds("gradients", "reduce_scatter", amount, self.sharded, small)
        return seconds

    def return_seconds(self, held: int, small: float = 0.0) -> float:
        """Once per step: updated weights from their owners to all."""
        if "optimizer" in self.shards and "parameter" not in self.shards:
            return self.step_seconds("weights", "all_gather", held, self.sharded, small)
        return 0.0

    def sum_bytes(self, bucket: int) -> int:
        """What adding gradients up over ranks once per step takes beside all of them, a bucket at a
        time: its sum, and, where it is scattered, an exchange before."""
        if self.ways > 1 and "gradient" not in self.shards:
            return bucket + bucket // self.ways
        return bucket if any(size > 1 for _, size, _ in (*self.replicas, *self.inside)) else 0

    def call_buffers(self, moment: Moment, in_place: bool) -> tuple[int, int, int]:
        """What a call holds inside, and beside, gathered weights and flat copies for the wire, when it
        is most, and what adding to gradients of other micro-batches takes."""
        weights, gathered = moment.weights, "parameter" in self.shards
        if in_place:
            return moment.inside, 3 * weights * gathered, 0
        bucket = min(weights, max(BUCKET_BYTES, moment.biggest))
        if moment.phase != "accumulate":
            if gathered and bucket > moment.inside:
                return 0, weights + bucket, 0
            return moment.inside, weights * gathered, 0
        if "gradient" in self.shards:
            return moment.inside, bucket + bucket // self.ways, 0
        return moment.inside, 0, moment.biggest

    def return_bytes(self, trained: int) -> int:
        """Updated weights that come from their owners, beside what they are copied to."""
        if "optimizer" not in self.shards or "parameter" in self.shards:
            return 0
        return trained + min(trained, BUCKET_BYTES)


def axes_of(plan: Plan, strategy: Strategy, item: int, cluster: Cluster | None = None) -> BatchAxes:
    """The batch axes of one of a plan's strategies, compressed as the plan says."""
    compression: Compression = {
        (c.subject, c.role): PROGRAMS[c.program]
        for c in plan.compression
        if c.strategy == strategy and c.subject != "activations"
    }
    return BatchAxes(strategy, cluster or plan.cluster, 1.0, item, compression)
