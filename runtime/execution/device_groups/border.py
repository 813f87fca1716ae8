"""Values and gradients that pass between two device groups which hold them in different layouts.

A receiver takes every element from one of the ranks that have it, and of partial sums from all of
them; where it may hold a partial sum itself, the first of its ranks takes all and the others zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....ir.model.layout import PARTIAL, Factors, Layout, local_type
from ....ir.model.mesh import Mesh
from ....ir.model.tensor import TensorType
from ....ir.plan.program import GroupProgram, GroupValue
from ...comm.process_group import Group
from ...comm.transfer import Transfer
from ...state.local_tensor import TensorBox, slices_of, unsliced
from .box_exchange import BoxMessage, extents, overlaps, receive, send


class Side(NamedTuple):
    """How a device group holds a value."""

    type: TensorType
    factors: Factors
    layout: Layout
    mesh: Mesh
    first_rank: int

    def local(self) -> TensorType:
        """The type of one rank's shard."""
        return local_type(self.type, self.factors, self.layout, self.mesh)

    def boxes(self, rank: int, shard: Tensor) -> list[TensorBox]:
        """The boxes of the whole value that a rank's shard is."""
        coordinate = self.mesh.coordinate(rank - self.first_rank)
        slices = slices_of(self.factors, self.layout, self.mesh, coordinate)
        return unsliced(TensorBox((0,) * shard.dim(), shard), slices)

    def takes(self, rank: int) -> bool:
        """Whether a rank receives the value: of those that hold parts of a sum, the first."""
        coordinate = self.mesh.coordinate(rank - self.first_rank)
        pairs = zip(coordinate, self.layout, strict=True)
        return all(at == 0 for at, state in pairs if state == PARTIAL)

    def gives(self, rank: int, receiver: int) -> bool:
        """Whether a rank sends to a receiver: of replicas one does, another one for every receiver."""
        coordinate = self.mesh.coordinate(rank - self.first_rank)
        return all(
            at == receiver % axis.size
            for at, state, axis in zip(coordinate, self.layout, self.mesh.axes, strict=True)
            if state != PARTIAL and not isinstance(state, tuple)
        )

    @property
    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.mesh.size)


def side(program: GroupProgram, value: GroupValue, *, gradient: bool) -> Side:
    """How a group holds a value, or its gradient."""
    layout = value.gradient_layout if gradient else value.layout
    assert layout is not None
    return Side(value.type, value.factors, layout, program.table.mesh, program.first_rank)


class Border:
    """Sends values from one group's ranks to another's; this rank is `rank`, on one of the sides."""

    def __init__(
        self, senders: Sequence[Side], receivers: Sequence[Side], group: Group, rank: int
    ) -> None:
        self.sides = list(zip(senders, receivers, strict=True))
        self.group, self.rank = group, rank

    def send(self, values: Sequence[Tensor], what: str) -> list[Transfer]:
        """Start sending this rank's shards."""
        transfers: list[Transfer] = []
        for value, (here, there) in zip(values, self.sides, strict=True):
            mine = here.boxes(self.rank, value.contiguous())
            for peer in there.ranks:
                if there.takes(peer) and here.gives(self.rank, peer):
                    others = extents(there.boxes(peer, _shape_of(there)))
                    message = BoxMessage(peer, tuple(overlaps(mine, others, mine_first=True)))
                    transfer = send(self.group, message, what)
                    transfers += [] if transfer is None else [transfer]
        return transfers

    def receive(self, what: str, device: torch.device) -> list[Tensor]:
        """This rank's shards of the values that the other side sends."""
        return [self._received(there, here, what, device) for there, here in self.sides]

    def _received(self, there: Side, here: Side, what: str, device: torch.device) -> Tensor:
        local = here.local()
        value = torch.zeros(local.shape, dtype=getattr(torch, local.dtype), device=device)
        if here.takes(self.rank):
            mine = here.boxes(self.rank, value)
            for message in self._messages(there, mine):
                receive(self.group, message, what, add=PARTIAL in there.layout)
        return value

    def _messages(self, there: Side, mine: Sequence[TensorBox]) -> Iterator[BoxMessage]:
        for peer in there.ranks:
            if there.gives(peer, self.rank):
                others = extents(there.boxes(peer, _shape_of(there)))
                yield BoxMessage(peer, tuple(overlaps(mine, others, mine_first=False)))


def _shape_of(side: Side) -> Tensor:
    """A shard without memory."""
    return torch.empty(side.local().shape, device="meta")
