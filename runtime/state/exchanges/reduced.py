"""What the sums of gradients need of the store that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ....ir.compression.program import Payload
from ...comm.buckets import Transport
from ...comm.program_groups import MeshGroups
from ...compression.transports import Transports
from ..experts.replicas import ExpertReplicas
from ..local_parameter import FlatShardGroups, LocalParameter


class ReducedParameters(Protocol):
    """Parameters of one rank, the groups over which they are sharded, and how their gradients travel."""

    parameters: dict[str, LocalParameter]
    groups: MeshGroups
    flat_groups: tuple[FlatShardGroups, ...]
    transports: Transports
    device: torch.device
    replicas: ExpertReplicas

    def readers(self) -> Mapping[str, int]:
        """By tensor that gradients reach, how often calls of a step read it."""
        ...

    def in_order_of_use(self, parameters: Iterable[LocalParameter]) -> list[LocalParameter]:
        """Parameters by the first call that reads them."""
        ...

    def trainable(self) -> list[LocalParameter]:
        """Parameters that the optimizer updates."""
        ...

    def by_mesh(
        self, parameters: Iterable[LocalParameter]
    ) -> Iterator[tuple[int, list[LocalParameter]]]:
        """Parameters by the number of their mesh."""
        ...

    def transport_of(
        self, payload: Payload, parameters: Iterable[LocalParameter], level: int
    ) -> Transport:
        """Transport over the ranks of one flat sharding level."""
        ...

    def remainder(self, levels: FlatShardGroups, parameter: LocalParameter, flat: Tensor) -> Tensor:
        """The part of an optimizer shard that belongs to the unsharded remainder."""
        ...

    def summed_dtype(self, parameter: LocalParameter) -> torch.dtype:
        """The element type in which gradients of a parameter are summed."""
        ...
