"""Weights that the optimizer updates in shards, gathered beside the forward that reads them next.

    optimizer │ gather bucket 0 │ call 0 ‖ gather 1 │ call 1 ‖ gather 2 │ …

Whoever reads a weight waits for its bucket (`LocalParameter.flat`), and so starts a later one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor

from ....ir.plan.program import BUCKET_BYTES, BUCKETS_AHEAD, step_bucket_bytes
from ...comm.buckets import Arrival, PlainTransport, Transport, buckets
from ..local_parameter import LocalParameter, names_of

TransportAt = Callable[[int], Transport]


@dataclass(eq=False)
class WeightBucket:
    """Weights that are gathered together; `arrival` is there once the gather has started."""

    members: Sequence[LocalParameter]
    transport_at: TransportAt
    arrival: Arrival | None = None


class UpdatedWeights:
    """Gathers of updated weights; `ahead` of their buckets travel while nobody waits for them (0:
    each arrives before the next one starts)."""

    def __init__(self, ahead: int = BUCKETS_AHEAD) -> None:
        self.ahead = ahead
        self.waiting: deque[WeightBucket] = deque()
        self.flying: deque[WeightBucket] = deque()

    def gather(self, parameters: Sequence[LocalParameter], transport_at: TransportAt) -> None:
        """Gather the shards of parameters of one mesh, given in the order in which they are read."""
        for members in in_buckets(parameters, transport_at):
            bucket = WeightBucket(members, transport_at)
            self.waiting.append(bucket)
            for parameter in members:
                parameter.arriving.append(partial(self.arrive, bucket))

    def begin(self) -> None:
        """Start as many buckets as may travel; without any that may, all arrive at once."""
        while self.waiting and len(self.flying) < max(self.ahead, 1):
            self.start()
            if not self.ahead:
                self.settle()

    def start(self) -> None:
        """Start the next gather over zero1, or where that is one rank, over zero2."""
        bucket = self.waiting.popleft()
        flats, names = [shard_of(p) for p in bucket.members], names_of(bucket.members)
        outer, inner = bucket.transport_at(2), bucket.transport_at(1)
        if all(p.sharding.degrees[2] == 1 for p in bucket.members):
            bucket.arrival = inner.start_all_gather(flats, names)
        else:
            first = outer.start_all_gather(flats, names)
            bucket.arrival = lambda: inner.all_gather(first(), names)
        self.flying.append(bucket)

    def arrive(self, bucket: WeightBucket) -> None:
        """Copy what has arrived into its tensors, and start the next bucket. Who reads a bucket before
        its turn starts those in front of it."""
        while bucket.arrival is None:
            self.start()
        for parameter in bucket.members:
            parameter.arriving.clear()
        self.flying.remove(bucket)
        for parameter, flat in zip(bucket.members, bucket.arrival(), strict=True):
            parameter.memory.copy_(flat)
        self.begin()

    def settle(self) -> None:
        """Wait for all that travels."""
        while self.flying:
            self.arrive(self.flying[0])


def shard_of(parameter: LocalParameter) -> Tensor:
    """What this rank has updated, in the element type of the tensor in memory."""
    assert parameter.leaf is not None
    memory = parameter.memory
    return parameter.leaf.detach().to(memory.device, memory.dtype, non_blocking=True).reshape(-1)


def in_buckets(
    parameters: Sequence[LocalParameter], transport_at: TransportAt
) -> Iterable[list[LocalParameter]]:
    """Parameters that are gathered together; a compressed transport has buckets of its own."""
    if not all(isinstance(transport_at(level), PlainTransport) for level in (1, 2)):
        return [list(parameters)]
    memories = [parameter.memory for parameter in parameters]
    total = sum(memory.numel() * memory.element_size() for memory in memories)
    ranks = max(prod(parameter.sharding.degrees[1:]) for parameter in parameters)
    limit = step_bucket_bytes(total, BUCKET_BYTES * ranks)
    return [[parameters[i] for i in row] for row in buckets(memories, limit)]
