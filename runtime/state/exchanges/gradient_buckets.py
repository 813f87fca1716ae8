"""Flat buffers of gradients that are summed once per step, each the memory of its collective.

A bucket is summed as soon as backward has added the last gradient to it, beside what is left of
backward: as many as calls read its tensors, or those of the first step where some gave none. Buckets
do not depend on when they are summed, so neither do the totals.

    rows of a bucket are the parts of the ranks (of zero1), its columns those of its tensors
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ....ir.plan.program import BUCKETS_AHEAD, step_bucket_bytes
from ...comm.process_group import Group
from ...comm.transfer import Started
from ..local_parameter import LocalParameter


class GradientBucket:
    """Gradients of some parameters in one buffer: reduce-scattered over `scatter`, then all-reduced
    over `total`, each possibly of one rank."""

    def __init__(
        self, parameters: Sequence[LocalParameter], dtype: torch.dtype, scatter: Group, total: Group
    ) -> None:
        self.parameters, self.dtype, self.scatter, self.total = parameters, dtype, scatter, total
        sizes = [reduced_elements(p) for p in parameters]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self.columns = {
            p.name: slice(end - size, end)
            for p, size, end in zip(parameters, sizes, ends, strict=True)
        }
        self.width = ends[-1]
        self.buffer: Tensor | None = None
        self.written: set[str] = set()
        self.transfer: Started | None = None

    @property
    def bytes(self) -> int:
        return self.width * self.scatter.size * self.dtype.itemsize

    def add(self, parameter: LocalParameter, flat: Tensor) -> None:
        """Add a gradient (`[padded elements]`) to what the buffer has of it."""
        assert self.transfer is None, f"{parameter.name} has more gradients than in the first step"
        if self.buffer is None:
            self.buffer = flat.new_empty((self.scatter.size, self.width), dtype=self.dtype)
        place = self.buffer[:, self.columns[parameter.name]]
        rows = flat.view(self.scatter.size, -1)
        if parameter.name in self.written:
            place += rows
        else:
            place.copy_(rows)
            self.written.add(parameter.name)

    def start(self) -> None:
        """Start to sum; the first of its collectives runs beside what follows."""
        if self.buffer is None:
            return
        for name, columns in self.columns.items():
            if name not in self.written:
                self.buffer[:, columns] = 0.0
        buffer, self.buffer = self.buffer, None
        if self.scatter.size > 1:
            self.transfer = self.scatter.start_reduce_scatter(buffer)
        else:
            total = self.total.start_all_reduce(buffer, in_place=True)
            self.transfer = total.then(lambda rows: rows[0])

    def arrived(self) -> bool:
        """Whether the first collective has ended, on this rank."""
        return self.transfer is not None and self.transfer.done()

    def wait(self) -> None:
        if self.transfer is not None:
            self.transfer.wait()

    def finish(self) -> dict[str, Tensor]:
        """The sums of this rank's parts, by name, of the gradients that there are."""
        if self.transfer is None:
            self.start()
        if self.transfer is None:
            return {}
        flat = self.transfer.wait()
        if self.scatter.size > 1 and self.total.size > 1:
            flat = self.total.all_reduce(flat, in_place=True)
        totals = {name: flat[self.columns[name]] for name in self.columns if name in self.written}
        self.clear()
        return totals

    def clear(self) -> None:
        self.wait()
        self.buffer = self.transfer = None
        self.written.clear()


class GradientBuckets:
    """The buckets of a rank; `limit_bytes` of them may be in flight at once (0: none), and of those
    that do not arrive where they are sent from, `BUCKETS_AHEAD`. `expected`: gradients of a step,
    at most, by parameter."""

    def __init__(
        self, buckets: Sequence[GradientBucket], limit_bytes: int, expected: Mapping[str, int]
    ) -> None:
        self.buckets, self.limit_bytes = tuple(buckets), limit_bytes
        self.bucket_of = {p.name: bucket for bucket in buckets for p in bucket.parameters}
        self.added: Counter[str] = Counter()  # gradients of this step, by parameter
        self.expected, self.learned = Counter(expected), False
        self.flying: deque[GradientBucket] = deque()

    def __contains__(self, name: str) -> bool:
        return name in self.bucket_of

    def add(self, parameter: LocalParameter, flat: Tensor) -> None:
        """Add a gradient; where it is the last of its bucket, start to sum."""
        bucket = self.bucket_of[parameter.name]
        bucket.add(parameter, flat)
        self.added[parameter.name] += 1
        if self.limit_bytes >= bucket.bytes:
            if all(self.added[p.name] == self.expected[p.name] for p in bucket.parameters):
                self.start(bucket)

    def start(self, bucket: GradientBucket) -> None:
        while self.flying and self.flying[0].arrived():
            self.flying.popleft().wait()  # so that what was sent is freed
        while self.flying and not self.may_fly(bucket):
            self.flying.popleft().wait()
        bucket.start()
        self.flying.append(bucket)

    def may_fly(self, bucket: GradientBucket) -> bool:
        """Whether a bucket may travel beside those that do."""
        elsewhere = sum(other.scatter.size > 1 for other in self.flying)
        if bucket.scatter.size > 1 and elsewhere >= BUCKETS_AHEAD:
            return False
        return sum(other.bytes for other in self.flying) + bucket.bytes <= self.limit_bytes

    def finish(self) -> dict[str, Tensor]:
        """The sums of this step's gradients, by name."""
        totals: dict[str, Tensor] = {}
        for bucket in self.buckets:
            totals.update(bucket.finish())
        if not self.learned:
            self.expected, self.learned = self.added, True
        self.added = Counter()
        self.flying.clear()
        return totals

    def clear(self) -> None:
        """Drop the gradients of this step."""
        for bucket in self.buckets:
            bucket.clear()
        self.added = Counter()
        self.flying.clear()


def reduced_elements(parameter: LocalParameter) -> int:
    """Elements of a rank's part of a gradient, once it is reduced over all levels."""
    _, zero2, zero1 = parameter.sharding.degrees
    return parameter.flat.numel() // (zero2 * zero1)


def divided(
    parameters: Iterable[LocalParameter], dtype: torch.dtype, scatter: Group, total: Group
) -> list[GradientBucket]:
    """Parameters in buckets, in the order in which backward comes to them."""
    ordered, rows = list(parameters)[::-1], list[list[LocalParameter]]()
    sizes = [reduced_elements(p) * scatter.size * dtype.itemsize for p in ordered]
    room = 0.0
    for parameter, size in zip(ordered, sizes, strict=True):
        if size > room:
            rows.append([])
            room = step_bucket_bytes(sum(sizes))
        rows[-1].append(parameter)
        room -= size
    return [GradientBucket(row, dtype, scatter, total) for row in rows]
