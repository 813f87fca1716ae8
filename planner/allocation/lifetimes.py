"""Lifetimes of the storages of a training step, recorded while its operators are walked in order.

Time counts operators. Views have no storage of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ...ir.analysis.liveness import BEFORE, lifetimes
from ...ir.model.model import Function, Op
from ...ir.plan.allocation import Buffer

ALIGNMENT_BYTES = 256  # what device kernels and allocators ask of an address

Storages = dict[int, str | None]  # value -> its storage; None where that is not part of the arena


class StepBuffers(msgspec.Struct, frozen=True):
    """Buffers of one step, and the times at which its segments begin (and the last one ends).

    A segment is the forward or backward of one call."""

    buffers: tuple[Buffer, ...]
    segment_starts: tuple[int, ...]


class Lifetimes:
    """Storages recorded so far, by name: time of allocation, bytes, and end of the last use."""

    def __init__(self) -> None:
        self.now = 0
        self.allocated: dict[str, tuple[int, int]] = {}
        self.last_use: dict[str, int] = {}
        self.segment_starts: list[int] = []

    def begin_segment(self) -> None:
        """Begin a segment of the step."""
        if self.now not in self.segment_starts[-1:]:
            self.segment_starts.append(self.now)

    def allocate(self, name: str, size: int) -> str:
        """Allocate a storage of `size` bytes now; returns its name."""
        assert name not in self.allocated, name
        self.allocated[name] = self.now, size
        self.last_use[name] = self.now + 1
        return name

    def use(self, name: str | None) -> None:
        """Record that the current operator reads a storage."""
        if name is not None:
            self.last_use[name] = self.now + 1

    def extend(self, *names: str | None) -> None:
        """Extend the lives of storages up to now."""
        for name in names:
            if name is not None:
                self.last_use[name] = max(self.last_use[name], self.now)

    def tick(self) -> None:
        self.now += 1

    def copy(self, before: str | None, name: str, size: int) -> str:
        """Copy one storage into a new one, as an operator of its own; returns the new name."""
        name = self.allocate(name, size)
        self.use(before)
        self.tick()
        return name

    def run(
        self,
        ops: Iterable[Op],
        function: Function,
        forward_roots: Sequence[int],
        prefix: str,
        known: Storages,
    ) -> None:
        """Run operators on `known` storages; results are named by prefix and value.

        `forward_roots`: per value, the value whose storage it shares."""
        ops, start = list(ops), self.now
        for root, (born, last) in lifetimes(ops, forward_roots).items():
            if born != BEFORE:
                self.now = start + born
                known[root] = self.allocate(f"{prefix}.{root}", function.types[root].bytes)
            self.now = start + last + 1
            self.extend(known.get(root))
        self.now = start + len(ops)

    def finish(self, alignment_bytes: int) -> StepBuffers:
        """Buffers of the finished step. Sizes are rounded up to the alignment, so that all
        addresses of a packing are multiples of it.
        """
        self.begin_segment()
        buffers = tuple(
            Buffer(
                name, allocated, self.last_use[name], -(-size // alignment_bytes) * alignment_bytes
            )
            for name, (allocated, size) in self.allocated.items()
        )
        return StepBuffers(buffers, tuple(self.segment_starts))
