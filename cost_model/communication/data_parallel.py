"""The axes that split the batch: what each device keeps a part of, and what it costs to put together.

    zero3   forward   gather weights of a call │ run it │ free
            backward  gather again │ run │ reduce-scatter gradients
    dp      after the last micro-batch: all-reduce gradients

Where a fraction of every weight is cut over zero3, that part goes the first way and the rest the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from ...ir.compression.program import Algorithm, Program
from ...ir.compression.registry import LEADERS, LED, PROGRAMS
from ...ir.devices.cluster import Cluster
from ...ir.plan.flat_shard import WHOLE
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import Moment
from ...ir.program import BUCKET_BYTES, TOGETHER
from .collective import collective_seconds
from .compressed_collective import FP32_BYTES, Priced, exchange_bytes, price_optimizer, price_step

Axis = tuple[str, int, int]  # role, size, ranks between neighbours
Axes = list[Axis]
Subject = Literal["gradients", "weights"]
Compression = Mapping[
    tuple[Subject, str], Program
]  # by what travels, and the role it travels along


class BatchAxes:
    """What the batch axes of a strategy cut, and the seconds to gather and to add up."""

    def __init__(
        self,
        strategy: Strategy,
        cluster: Cluster,
        gradient_scale: float = 1.0,
        item: int = 4,
        compression: Compression | None = None,
        leader: Algorithm | None = None,
    ) -> None:
        """`gradient_scale`: bytes of a gradient sent, per byte of its parameter, of which an element
        has `item`. A `leader` is an optimizer that talks itself."""
        self.cluster, self.scale, self.item = cluster, gradient_scale, item
        self.compression, self.leader = compression or {}, leader
        axes = [(r, n, strategy.stride(r)) for r, n in strategy.axes]
        self.sharded = [a for a in axes if ROLES[a[0]].shards]
        self.inside = [a for a in axes if a[:2] in strategy.inside]
        self.replicas = [
            a for a in axes if ROLES[a[0]].batch and a not in self.sharded + self.inside
        ]
        self.shards = frozenset(s for r, _, _ in self.sharded for s in ROLES[r].shards)
        self.priced: dict[tuple[Program | Algorithm, float, Axis, float], Priced] = {}
        self.known: dict[tuple[str, float, tuple[Axis, ...]], float] = {}
        self.ways = prod(size for _, size, _ in self.sharded)
        self.fraction = strategy.fraction
        self.copies = self.sharded if strategy.fraction != WHOLE else []

    def pieces(self, what: str) -> int:
        """Into how many pieces is cut what is cut of it."""
        return self.ways if what in self.shards else 1

    def cut(self, amount: int) -> int:
        """Bytes of weights, or of what goes with them, that are cut along the zero axes."""
        return amount * self.fraction[0] // self.fraction[1]

    def rest(self, amount: int) -> int:
        """Bytes that all ranks along them have copies of."""
        return amount - self.cut(amount)

    def kept(self, amount: int, what: str) -> int:
        """Bytes of so many that lie here: a piece of what is cut, and the rest."""
        return self.rest(amount) + self.cut(amount) // self.ways if what in self.shards else amount

    def part(self, what: str) -> float:
        """The part of the bytes that lie here."""
        if what not in self.shards:
            return 1.0
        over, under = self.fraction
        return (under - over + over / self.ways) / under

    def state_bytes(self, held: int, summed: dict[str, int], over_all: bool) -> int:
        """Bytes of held weights whose optimizer states lie here. `over_all`: weights that are whole
        along an axis inside a replica (`summed` there) have their states cut along it too."""
        if "optimizer" not in self.shards and not over_all:
            return held
        bytes_here = float(held)
        for role, size, _ in self.inside if over_all else ():
            bytes_here -= summed.get(role, 0) * (1 - 1 / size)
        return self.kept(int(max(bytes_here, 0.0)), "optimizer")

    def seconds(self, kind: str, amount: float, axes: Axes) -> float:
        key = kind, amount, tuple(axes)
        if key not in self.known:
            self.known[key] = sum(
                float(collective_seconds(kind, amount, size, stride, self.cluster))
                for _, size, stride in axes
            )
        return self.known[key]

    def travel_seconds(
        self, subject: Subject, kind: str, amount: float, axes: Axes, small: float = 0.0
    ) -> float:
        """A collective of gradients or weights, compressed along the axes where it is, but for a part
        `small` of it in small tensors."""
        if not self.compression and self.leader is None:
            return self.seconds(kind, amount, axes)
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
        program = self.leader if self.leads(role) else self.compression.get((subject, role))
        if program is None or not amount:
            return None
        key = program, amount, axis, small
        if key not in self.priced:
            elements = int(amount / self.item / (self.scale if subject == "gradients" else 1))
            where = size, stride, self.cluster, small
            if isinstance(program, Algorithm):
                self.priced[key] = price_optimizer(program, elements, *where)
            else:
                elements //= size if program.result == "all_gather" else 1
                self.priced[key] = price_step(program, elements, *where)
        return self.priced[key]

    def leads(self, role: str) -> bool:
        """Whether the sums along an axis are left to the optimizer."""
        return self.leader is not None and role == LED

    def name(self, subject: Subject, role: str) -> str:
        """As what something travels compressed."""
        if self.leader is not None and self.leads(role):
            return self.leader.name
        return self.compression[subject, role].name

    def compression_bytes(self, held: int, small: int) -> int:
        """What compression keeps between steps for trained weights of `held` bytes, `small` of them in
        small tensors: errors, and of
        weights the replica that all ranks have and the exact piece that the optimizer steps on."""
        total, part = 0, held * self.scale * self.part("optimizer")
        for subject, role in self.compression:
            (axis,) = (a for a in (*self.replicas, *self.sharded) if a[0] == role)
            gathered = subject == "weights" or axis in self.sharded
            priced = self.compressed(
                subject, held if gathered else part, axis, small / max(held, 1)
            )
            total += priced.state_bytes if priced else 0
            if subject == "weights" and "parameter" not in ROLES[role].shards:
                total += held // self.item * FP32_BYTES + self.kept(held, "optimizer")
        return total

    def moving_bytes(self, subject: Subject, whole: int, bucket: int, plain: int) -> int:
        """What `whole` bytes of weights, or of their gradients, take beside themselves and what becomes
        of them while they travel in buckets: `plain` bytes, or those of compressed ones under way."""
        if not self.compression:
            return plain
        elements = min(whole, TOGETHER * bucket) // self.item
        sizes = [
            exchange_bytes(program, elements, axis[1], axis[2], self.cluster)
            for (what, role), program in self.compression.items()
            for axis in (*self.replicas, *self.sharded)
            if what == subject and axis[0] == role
        ]
        return max(plain, *sizes) if sizes else plain

    def gather_seconds(self, amount: int, small: float = 0.0) -> float:
        """Weights of one call, before each of its pieces."""
        if "parameter" not in self.shards:
            return 0.0
        return self.travel_seconds("weights", "all_gather", self.cut(amount), self.sharded, small)

    def scatter_seconds(self, amount: int, small: float = 0.0) -> float:
        """Gradients of one call, after its backward."""
        if "gradient" not in self.shards:
            return 0.0
        sent = self.cut(amount) * self.scale
        return self.travel_seconds("gradients", "reduce_scatter", sent, self.sharded, small)

    def reduce_seconds(self, held: int, summed: dict[str, int], small: float = 0.0) -> float:
        """Once per step: gradients over plain axes and the tensor axes, or scattered to their owners."""
        part = self.scale * self.part("optimizer")
        seconds = self.travel_seconds("gradients", "all_reduce", held * part, self.replicas, small)
        for axis in self.inside:
            seconds += self.seconds("all_reduce", summed[axis[0]] * part, [axis])
        if "optimizer" in self.shards and "gradient" not in self.shards:
            amount = held * self.scale
            seconds += self.travel_seconds(
                "gradients", "reduce_scatter", amount, self.sharded, small
            )
        return seconds + self.seconds("all_reduce", self.rest(held) * self.scale, self.copies)

    def return_seconds(self, held: int, small: float = 0.0) -> float:
        """Once per step: updated weights from their owners to all."""
        if "optimizer" in self.shards and "parameter" not in self.shards:
            return self.travel_seconds("weights", "all_gather", held, self.sharded, small)
        return 0.0

    def sum_bytes(self, bucket: int, gradients: int, biggest: int) -> int:
        """What adding so many bytes of gradients up over ranks once per step takes beside all of them, a
        bucket at a time: its sum, and, where it is scattered, an exchange before."""
        if self.ways > 1 and "gradient" not in self.shards:
            return self.moving_bytes("gradients", gradients, bucket, bucket + bucket // self.ways)
        copies = _copied(self.rest(gradients), self.rest(biggest)) if self.copies else 0
        alone = all(size == 1 for _, size, _ in (*self.replicas, *self.inside))
        return max(
            copies, 0 if alone else self.moving_bytes("gradients", gradients, bucket, bucket)
        )

    def call_buffers(self, moment: Moment, in_place: bool) -> tuple[int, int, int]:
        """What a call holds inside, and beside, gathered weights and flat copies for the wire, when it
        is most, and what adding to gradients of other micro-batches takes."""
        weights, gathered = moment.weights, "parameter" in self.shards
        if in_place:
            return moment.inside, 3 * weights * gathered, 0
        cut, biggest = self.cut(weights), self.cut(moment.biggest)
        bucket = min(cut, max(BUCKET_BYTES, biggest))
        if moment.phase != "accumulate":
            moved = self.moving_bytes("weights", cut, bucket, bucket) if gathered else 0
            before = max(cut + moved, weights + biggest) if gathered else 0
            if before - weights > moment.inside:
                return 0, before, 0
            return moment.inside, weights * gathered, 0
        if "gradient" not in self.shards:
            return moment.inside, 0, moment.biggest
        if self.copies:
            # what is left of a gradient stays until its piece has come back
            most = max(_copied(cut, biggest), self.kept(moment.biggest, "gradient"))
            return moment.inside, cut // self.ways + most, 0
        plain = bucket + bucket // self.ways
        return moment.inside, self.moving_bytes("gradients", cut, bucket, plain), 0

    def return_bytes(self, trained: int) -> int:
        """Updated weights that come from their owners, beside what they are copied to."""
        if "optimizer" not in self.shards or "parameter" in self.shards:
            return 0
        bucket = min(trained, BUCKET_BYTES)
        return trained + self.moving_bytes("weights", trained, bucket, bucket)


def _copied(amount: int, biggest: int) -> int:
    """What a bucket of parts of tensors takes on its way, beside the tensors: what comes, and a copy of
    what goes unless it is one part alone."""
    together = amount - biggest if biggest > BUCKET_BYTES else amount
    return max(biggest, 2 * min(together, BUCKET_BYTES))


def axes_of(plan: Plan, strategy: Strategy, item: int, cluster: Cluster | None = None) -> BatchAxes:
    """The batch axes of one of a plan's strategies, compressed as the plan says."""
    compression: Compression = {
        (c.subject, c.role): PROGRAMS[c.program]
        for c in plan.compression
        if c.strategy == strategy and c.subject != "activations"
    }
    leader = LEADERS.get(plan.optimizer.name)
    return BatchAxes(strategy, cluster or plan.cluster, 1.0, item, compression, leader)
