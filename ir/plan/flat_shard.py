"""Shards of a flattened tensor over the zero axes.

A fraction of a tensor may be sharded over zero3, the rest is then replicated along that axis (OSDP:
Jiang et al. 2023, operator splitting). The local elements are sharded further over zero2 and zero1:

    flattened       ████████████████░░░░░░░░  24 elements, 2/3 of them over zero3=2
    local, rank 0   ████████        ░░░░░░░░  and over zero2=2, rank 0: the first half of these 16
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import msgspec

from ..ranges import AxisSize

Fraction = tuple[AxisSize, AxisSize]  # numerator and denominator
FULL: Fraction = (1, 1)


class FlatShard(msgspec.Struct, frozen=True):
    """`elements` sharded over (zero3, zero2, zero1) with these `degrees`, a `fraction` of them over
    zero3. Zeros pad the end; with a fraction, the remainder modulo zero3 is replicated instead.
    Shards end where a `row` of so many elements does."""

    elements: int
    degrees: tuple[int, int, int]
    fraction: Fraction = FULL
    row: int = 1

    @property
    def sharded_elements(self) -> int:
        """Number of leading elements that zero3 shards, padding included."""
        if self.fraction == FULL:
            return rounded_up(self.elements, prod(self.degrees) * self.row)
        count = -(-self.elements * self.fraction[0] // self.fraction[1])
        outer = self.degrees[0] * self.row
        return min(rounded_up(count, outer), self.elements // outer * outer)

    @property
    def shard_elements(self) -> int:
        """Elements of one zero3 shard."""
        return self.sharded_elements // self.degrees[0]

    @property
    def local_elements(self) -> int:
        """Elements on one rank after zero3: its shard, then the replicated rest, padded."""
        rest = max(self.elements - self.sharded_elements, 0)
        inner = self.degrees[1] * self.degrees[2] * self.row
        return rounded_up(self.shard_elements + rest, inner)

    @property
    def padded_elements(self) -> int:
        """All elements, padding included."""
        if self.fraction == FULL:
            return self.sharded_elements  # of which every shard is whole rows
        return self.sharded_elements + self.local_elements - self.shard_elements

    @property
    def partially_sharded(self) -> bool:
        """Whether some elements are replicated along zero3 while others are sharded."""
        return self.degrees[0] > 1 and self.local_elements > self.shard_elements

    def ranges(self, place: tuple[int, int, int], levels: int) -> Iterator[tuple[int, int]]:
        """Ranges [first, last) of the flattened tensor at a coordinate (zero3, zero2, zero1), after
        sharding over the first `levels` axes."""
        if levels == 0:
            yield 0, self.elements
            return
        first, size = 0, self.local_elements
        for degree, at in list(zip(self.degrees, place, strict=True))[1:levels]:
            size //= degree
            first += at * size
        last = first + size
        yield from self._within(
            min(first, self.shard_elements),
            min(last, self.shard_elements),
            place[0] * self.shard_elements,
        )
        yield from self._within(
            max(first, self.shard_elements),
            max(last, self.shard_elements),
            self.sharded_elements - self.shard_elements,
        )

    def _within(self, first: int, last: int, beyond: int) -> Iterator[tuple[int, int]]:
        """The range shifted by `beyond`, without padding."""
        low, high = first + beyond, min(last + beyond, self.elements)
        if low < high:
            yield low, high


def rounded_up(elements: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `elements`."""
    return -(-elements // multiple) * multiple
