"""What generated code calls as `comm`: collectives along mesh axes, and places in random masks.

The mesh's axes are extended by `micro`, the micro-batch at hand: values can be cut along it and
shared over it, as over any axis, but nothing can be gathered or summed. Results are contiguous and
new; inputs are left alone. `dim` and `outer` say which factor of a dimension is cut: see `shard`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ..ir.local import MICRO
from ..ir.mesh import Mesh
from .group import Group
from .shard import block, join, split


class Comm:
    """Collectives of one rank. `bytes` counts what it sent, by kind (ring algorithms)."""

    def __init__(
        self,
        mesh: Mesh,
        micro_batches: int,
        rank: int,
        groups: Mapping[str, Group],
        sent: Counter[str] | None = None,
    ) -> None:
        names = [axis.name for axis in mesh.axes]
        self.groups = groups
        self.sizes = {axis.name: axis.size for axis in mesh.axes} | {MICRO: micro_batches}
        self.places = dict(zip(names, mesh.coordinate(rank), strict=True)) | {MICRO: 0}
        self.bytes: Counter[str] = Counter() if sent is None else sent

    def micro_batch(self, number: int) -> None:
        """Work on this micro-batch from now on."""
        self.places[MICRO] = number

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """Sum of every rank's `x`."""
        return self.groups[axis].all_reduce(x)

    def all_gather(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """The whole of which every rank has a piece."""
        if self.sizes[axis] == 1:
            return x
        return join(self.groups[axis].all_gather(x), dim, outer)

    def reduce_scatter(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """This rank's piece of the sum of every rank's `x`."""
        if self.sizes[axis] == 1:
            return x
        return self.groups[axis].reduce_scatter(split(x, self.sizes[axis], dim, outer))

    def all_to_all(
        self,
        x: Tensor,
        axis: str,
        from_dim: int,
        from_outer: int = 1,
        to_dim: int = 0,
        to_outer: int = 1,
    ) -> Tensor:
        """`x` is cut at `from`, the result at `to`: outers as before and after, respectively."""
        ways = self.sizes[axis]
        if ways == 1:
            return x
        if from_dim == to_dim:
            # The factor that lies further out is cut on the side where the other's outer was taken.
            if from_outer < to_outer:
                to_outer //= ways
            else:
                from_outer //= ways
        received = self.groups[axis].all_to_all(split(x, ways, to_dim, to_outer))
        return join(received, from_dim, from_outer)

    def cut(self, x: Tensor, axis: str, dim: int, outer: int = 1) -> Tensor:
        """This rank's (or micro-batch's) piece of a whole."""
        return block(x, self.sizes[axis], self.places[axis], dim, outer)

    def share(self, x: Tensor, axis: str) -> Tensor:
        """An equal part of `x`: a partial sum whose sum over the axis is `x`."""
        return x if self.sizes[axis] == 1 else x / self.sizes[axis]

    def dropout(self, *args: object, **words: object) -> Tensor:
        """`plait::dropout` of a shard: its part of the whole tensor's mask."""
        return torch.ops.plait.dropout.default(*self.placed(args), **words)

    def attention(self, *args: object, **words: object) -> tuple[Tensor, ...]:
        """`plait::attention` of a shard of heads or batch, with its part of the dropout mask."""
        return torch.ops.plait.attention.default(*self.placed(args), **words)

    def attention_backward(self, *args: object, **words: object) -> tuple[Tensor, ...]:
        """The gradients of `attention`."""
        return torch.ops.plait.attention_backward.default(*self.placed(args), **words)

    def placed(self, args: tuple[object, ...]) -> list[object]:
        """Arguments with the places among them turned into `(size, stride, start)` triples."""
        return [self.index(arg) if _are_places(arg) else arg for arg in args]

    def index(self, places) -> list[int]:
        """Flat triples from `(local size, stride, axis names)` factors, outermost first."""
        triples: list[int] = []
        for size, stride, axes in places:
            position = 0
            for axis in axes:
                position = position * self.sizes[axis] + self.places[axis]
            triples += [size, stride, position * size]
        return triples


def _are_places(arg: object) -> bool:
    return (
        isinstance(arg, list | tuple)
        and len(arg) > 0
        and all(isinstance(f, list | tuple) and len(f) == 3 for f in arg)
        and all(isinstance(f[2], list | tuple) for f in arg)
    )
