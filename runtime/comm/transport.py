"""Transport of flat gradients and weights along one axis: collectives over many tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from . import buckets
from .buckets import Arrival
from .process_group import Group

Names = Sequence[str]


class Transport(Protocol):
    """Collectives over many flat tensors along one axis.

    Reductions empty their lists. `names` identify the tensors for states such as error feedback.
    What is started runs beside what follows, where it is not compressed.
    """

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]: ...
    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]: ...
    def all_gather(self, shards: Sequence[Tensor], names: Names) -> list[Tensor]: ...
    def start_reduce_scatter(self, flats: list[Tensor], names: Names) -> Arrival: ...
    def start_all_gather(self, shards: Sequence[Tensor], names: Names) -> Arrival: ...


class PlainTransport:
    """Collectives of uncompressed tensors, in buckets."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]:
        return buckets.all_reduce(self.group, tensors)

    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]:
        return buckets.reduce_scatter(self.group, flats)

    def all_gather(self, shards: Sequence[Tensor], names: Names) -> list[Tensor]:
        return buckets.all_gather(self.group, shards)

    def start_reduce_scatter(self, flats: list[Tensor], names: Names) -> Arrival:
        return buckets.start_reduce_scatter(self.group, flats)

    def start_all_gather(self, shards: Sequence[Tensor], names: Names) -> Arrival:
        return buckets.start_all_gather(self.group, shards)
