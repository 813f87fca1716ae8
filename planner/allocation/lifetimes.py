"""When the storages of a training step live: births and last uses as its operators run.

Time counts operators. Whoever walks a step tells what is born, used and held; views own no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ...ir.model import Function, Op
from ...ir.plan.allocation import Buffer

ALIGNMENT_BYTES = 256  # what device kernels and allocators ask of an address

Known = dict[int, str | None]  # storages of values; None where one lives elsewhere


class StepBuffers(msgspec.Struct, frozen=True):
    """The buffers of one step, and the times at which its pieces begin (and the last ends)."""

    buffers: tuple[Buffer, ...]
    cuts: tuple[int, ...]


class Lifetimes:
    """The storages so far, by name: when each was born, of how many bytes, and when it was last used."""

    def __init__(self) -> None:
        self.now = 0
        self.born: dict[str, tuple[int, int]] = {}
        self.last: dict[str, int] = {}
        self.cuts: list[int] = []

    def begin(self) -> None:
        """A piece of the step begins."""
        if self.now not in self.cuts[-1:]:
            self.cuts.append(self.now)

    def make(self, name: str, size: int) -> str:
        """A storage of so many bytes, from now on."""
        assert name not in self.born, name
        self.born[name] = self.now, size
        self.last[name] = self.now + 1
        return name

    def use(self, name: str | None) -> None:
        """What runs now reads a storage."""
        if name is not None:
            self.last[name] = self.now + 1

    def hold(self, *names: str | None) -> None:
        """Storages that were there until now."""
        for name in names:
            if name is not None:
                self.last[name] = max(self.last[name], self.now)

    def tick(self) -> None:
        self.now += 1

    def turn(self, before: str | None, name: str, size: int) -> str:
        """One storage becomes another."""
        made = self.make(name, size)
        self.use(before)
        self.tick()
        return made

    def run(
        self, ops: Iterable[Op], function: Function, roots: Sequence[int], prefix: str, known: Known
    ) -> None:
        """Operators of a function on `known` storages: what they make is named by the prefix and its
        value; `roots` says whose memory each value shares."""
        for op in ops:
            for value in op.results:
                if value >= 0 and roots[value] == value:
                    known[value] = self.make(f"{prefix}.{value}", function.types[value].bytes)
            for value in op.operands():
                self.use(known.get(roots[value]))
            self.tick()

    def step(self, alignment_bytes: int) -> StepBuffers:
        """All of them, when the step has ended; sizes are rounded up to the alignment, so that every
        address a packing gives is a multiple of it."""
        self.begin()
        buffers = tuple(
            Buffer(name, born, self.last[name], -(-size // alignment_bytes) * alignment_bytes)
            for name, (born, size) in self.born.items()
        )
        return StepBuffers(buffers, tuple(self.cuts))
