"""How a tensor's elements, laid flat, are cut over the zero axes.

A fraction of a tensor may be cut over zero3, the rest of it is then whole on every rank along that
axis (OSDP: Jiang et al. 2023, operator splitting). What a rank keeps is cut on over zero2 and zero1:

    laid flat       ████████████████░░░░░░░░  24 elements, 2/3 of them over zero3=2
    rank 0 keeps    ████████        ░░░░░░░░  and of zero2=2 rank 0 the first half of these 16
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import msgspec

Fraction = tuple[int, int]  # numerator and denominator
WHOLE: Fraction = (1, 1)


class Flat(msgspec.Struct, frozen=True):
    """`elements` cut over (zero3, zero2, zero1), of them a `fraction` over zero3. Zeros at the end make
    them even; what is not a multiple of zero3 stays whole where a fraction is cut."""

    elements: int
    ways: tuple[int, int, int]
    fraction: Fraction = WHOLE

    @property
    def sharded(self) -> int:
        """The first elements, which are cut over zero3."""
        if self.fraction == WHOLE:
            return rounded_up(self.elements, prod(self.ways))
        part, outer = -(-self.elements * self.fraction[0] // self.fraction[1]), self.ways[0]
        return min(rounded_up(part, outer), self.elements // outer * outer)

    @property
    def piece(self) -> int:
        """Of them a rank's own, along zero3."""
        return self.sharded // self.ways[0]

    @property
    def kept(self) -> int:
        """Elements that a rank keeps: its piece of those, then the rest."""
        rest = max(self.elements - self.sharded, 0)
        return rounded_up(self.piece + rest, self.ways[1] * self.ways[2])

    @property
    def length(self) -> int:
        """All of them, with zeros at the end."""
        return self.sharded + self.kept - self.piece

    @property
    def split(self) -> bool:
        """Whether of some elements all ranks along zero3 have copies."""
        return self.ways[0] > 1 and self.kept > self.piece

    def ranges(self, place: tuple[int, int, int], cuts: int) -> Iterator[tuple[int, int]]:
        """The elements from the first to before the last that lie at a place after the first `cuts`."""
        if cuts == 0:
            yield 0, self.elements
            return
        first, size = 0, self.kept
        for ways, at in list(zip(self.ways, place, strict=True))[1:cuts]:
            size //= ways
            first += at * size
        last = first + size
        yield from self._within(
            min(first, self.piece), min(last, self.piece), place[0] * self.piece
        )
        yield from self._within(
            max(first, self.piece), max(last, self.piece), self.sharded - self.piece
        )

    def _within(self, first: int, last: int, beyond: int) -> Iterator[tuple[int, int]]:
        """Of the elements `beyond` these those that are no padding."""
        low, high = first + beyond, min(last + beyond, self.elements)
        if low < high:
            yield low, high


def rounded_up(elements: int, ways: int) -> int:
    """The next multiple of `ways`."""
    return -(-elements // ways) * ways
