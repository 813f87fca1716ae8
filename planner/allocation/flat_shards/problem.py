"""What a flat buffer is made of, and how it is laid out.

A tensor is contiguous and made of blocks (of a quantisation scheme, or rows) that no cut between
ranks may go through. Padding lies between tensors only.

      |aaaaaaaaaaaa bb|bbbbbb ccccccc |    three tensors on two ranks: blocks of 3, 2 and 7
"""

from __future__ import annotations

from math import prod

import msgspec


class FlatTensor(msgspec.Struct, frozen=True):
    """`elements` behind one another; blocks of `block` elements, the last of which may be shorter."""

    name: str
    elements: int
    block: int = 1

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], rows: int = 0, block: int = 1) -> FlatTensor:
        """A tensor by shape whose blocks are `rows` whole rows, or `block` elements if rows is 0."""
        return cls(name, prod(shape), rows * prod(shape[1:]) if rows else block)


class FlatLayout(msgspec.Struct, frozen=True):
    """Offsets of tensors, in elements, in a buffer of `ranks` shards of `shard_elements` each.

    No layout has shards smaller than `bound_elements`.
    """

    ranks: int
    shard_elements: int
    bound_elements: int
    offsets: tuple[int, ...]

    @property
    def gap(self) -> float:
        """How far the shard may be from the least one, as a share of it."""
        return (self.shard_elements - self.bound_elements) / self.shard_elements

    def padding(self, elements: int) -> float:
        """Padding as a share of the elements that the tensors have in all."""
        return (self.ranks * self.shard_elements - elements) / elements
