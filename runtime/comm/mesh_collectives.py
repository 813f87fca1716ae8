"""What generated code calls as `comm`: collectives along mesh axes, and operators of shards.

The mesh's axes are extended by `micro`, the micro-batch at hand, and `split`, the piece of it: values
can be cut along them and shared over them, as over any axis; pieces are added up or put together as
they come. Results are contiguous and new; inputs are left alone. `dim` and `outer` say which factor of
a dimension is cut: see `shard`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from ...ir.lowering.localize import MICRO, SPLIT
from ...ir.mesh import Mesh
from ..compression.activations import Summing
from .process_group import Group
from .sharded_operators import Placed
from .slicing import block, join, put, split


class Comm(Placed):
    """Collectives of one rank. `bytes` counts what it sent, by kind (ring algorithms); `summing`, by
    axis, are sums that travel compressed."""

    def __init__(
        self,
        mesh: Mesh,
        micro_batches: int,
        rank: int,
        groups: Mapping[str, Group],
        sent: Counter[str] | None = None,
        summing: Mapping[str, Summing] | None = None,
    ) -> None:
        names = [axis.name for axis in mesh.axes]
        self.groups = groups
        self.sizes = {axis.name: axis.size for axis in mesh.axes} | {MICRO: micro_batches}
        self.places = dict(zip(names, mesh.coordinate(rank), strict=True)) | {MICRO: 0}
        self.bytes: Counter[str] = Counter() if sent is None else sent
        self.summing = summing or {}

    def micro_batch(self, number: int) -> None:
        """Work on this micro-batch from now on."""
        self.places[MICRO] = number

    def split(self, ways: int) -> Iterator[int]:
        """Work on one piece after the other."""
        self.sizes[SPLIT] = ways
        for number in range(ways):
            self.places[SPLIT] = number
            yield number

    def add(self, total: Tensor | None, part: Tensor) -> Tensor:
        """`total` with one more part added to it in place."""
        return part.clone() if total is None else total.add_(part)

    def put(
        self, whole: Tensor | None, part: Tensor, axis: str, dim: int, outer: int = 1
    ) -> Tensor:
        """`whole` with the piece at hand in its place: the inverse of `cut`."""
        ways = self.sizes[axis]
        if whole is None:
            shape = [n * ways if d == dim else n for d, n in enumerate(part.shape)]
            whole = part.new_empty(shape)
        put(whole, part, ways, self.places[axis], dim, outer)
        return whole

    def all_reduce(self, x: Tensor, axis: str) -> Tensor:
        """Sum of every rank's `x`."""
        if axis in self.summing:
            return self.summing[axis].all_reduce(x)
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

    def sum_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        for axis in axes:
            x = self.groups[axis].all_reduce(x)
        return x

    def max_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        for axis in axes:
            x = self.groups[axis].all_reduce(x, largest=True)
        return x

    def exchange(self, x: Tensor, axis: str, sent: list[int], received: list[int]) -> Tensor:
        return self.groups[axis].exchange(x, sent, received)
