"""Tensors of a flat buffer and their layout.

A tensor is contiguous and consists of blocks (of a quantisation scheme, or rows) that no shard
boundary may split. Padding is between tensors only.

      |aaaaaaaaaaaa bb|bbbbbb ccccccc |    three tensors on two ranks: blocks of 3, 2 and 7
"""

from __future__ import annotations

from math import prod

import msgspec


class FlatTensor(msgspec.Struct, frozen=True):
    """A contiguous tensor of `elements`, in blocks of `block` (the last may be shorter)."""

    name: str
    elements: int
    block: int = 1

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], rows: int = 0, block: int = 1) -> FlatTensor:
        """A tensor whose blocks are `rows` full rows, or `block` elements if rows is 0."""
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
        """Relative distance of the shard size from its lower bound."""
        return (self.shard_elements - self.bound_elements) / self.shard_elements

    def padding(self, elements: int) -> float:
        """Padding as a fraction of `elements`, the total of the tensors."""
        return (self.ranks * self.shard_elements - elements) / elements
