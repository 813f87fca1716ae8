"""Weights that are sharded over zero3, gathered before each use: those of the next call beside this one.

forward    gather 0 │ call 0 beside gather 1 │ call 1 beside gather 2 │ …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor

from ...comm.buckets import Arrival, Transport
from ..local_parameter import LocalParameter, names_of

Names = tuple[str, ...]
TransportOf = Callable[[Sequence[LocalParameter]], Transport]


class WeightGathers:
    """Gathers on their way, by the names of what they gather; `limit_bytes` may be in flight at once."""

    def __init__(self, transport_of: TransportOf, limit_bytes: int) -> None:
        self.transport_of, self.limit_bytes = transport_of, limit_bytes
        self.arriving: dict[Names, Callable[[], dict[str, Tensor]]] = {}
        self.retained: set[Names] = set()

    def start(self, parameters: Iterable[LocalParameter]) -> None:
        """Start to gather what a call reads, unless that is on its way, or too large."""
        sharded = sharded_once(parameters)
        names = tuple(names_of(sharded))
        if sharded and names not in self.arriving and gathered_bytes(sharded) <= self.limit_bytes:
            shards = [p.zero3_shard for p in sharded]
            arrival = self.transport_of(sharded).start_all_gather(shards, names)
            self.arriving[names] = partial(full_tensors, sharded, arrival)

    def retain(self, parameters: Iterable[LocalParameter]) -> None:
        """Keep what a call is about to take for the next one that takes it."""
        if self.limit_bytes:
            self.retained.add(tuple(names_of(sharded_once(parameters))))

    def take(self, parameters: Iterable[LocalParameter]) -> dict[str, Tensor]:
        """The full flat values of those that are sharded, by name, once they have arrived."""
        sharded = sharded_once(parameters)
        if not sharded:
            return {}
        names = tuple(names_of(sharded))
        if names in self.arriving:
            full = self.arriving.pop(names)()
        else:
            shards = [p.zero3_shard for p in sharded]
            transport = self.transport_of(sharded)
            full = full_tensors(sharded, partial(transport.all_gather, shards, names))
        if names in self.retained:
            self.retained.remove(names)
            self.arriving[names] = lambda: full
        return full

    def clear(self) -> None:
        """Forget what nothing has taken, once it has arrived."""
        for arrival in self.arriving.values():
            arrival()
        self.arriving.clear()
        self.retained.clear()


def full_tensors(sharded: Sequence[LocalParameter], arrival: Arrival) -> dict[str, Tensor]:
    """What arrives, with what of each tensor is not sharded, by name."""
    flats = arrival()
    flats.reverse()  # so that each is freed as soon as it is copied into its tensor
    return {p.name: p.with_remainder(flats.pop()) for p in sharded}


def sharded_once(parameters: Iterable[LocalParameter]) -> list[LocalParameter]:
    """Those that have a part sharded over zero3, each once."""
    by_name = {p.name: p for p in parameters}
    return [p for p in by_name.values() if p.sharding.degrees[0] > 1 and p.sharding.shard_elements]


def gathered_bytes(sharded: Sequence[LocalParameter]) -> int:
    """Bytes of what a gather gives."""
    return sum(p.sharding.sharded_elements * p.flat.element_size() for p in sharded)
