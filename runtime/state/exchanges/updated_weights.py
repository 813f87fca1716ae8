"""Weights that the optimizer updates in shards, gathered beside the forward that reads them next.

    optimizer │ gather bucket 0 │ call 0 ‖ gather 1 │ call 1 ‖ gather 2 │ …

Whoever reads a weight waits for its bucket (`LocalParameter.flat`), and so starts a later one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor

from ....ir.plan.program import BUCKET_BYTES, BUCKETS_AHEAD
from ...comm.buckets import Arrival, PlainTransport, Transport, buckets
from ..local_parameter import LocalParameter, names_of

TransportAt = Callable[[int], Transport]


class UpdatedWeights:
    """Gathers of updated weights; `ahead` of their buckets travel while nobody waits for them (0:
    each arrives before the next one starts)."""

    def __init__(self, ahead: int = BUCKETS_AHEAD) -> None:
        self.ahead = ahead
        self.waiting: deque[Callable[[], None]] = deque()  # starts a bucket
        self.flying: deque[Sequence[LocalParameter]] = deque()

    def gather(self, parameters: Sequence[LocalParameter], transport_at: TransportAt) -> None:
        """Gather the shards of parameters of one mesh, given in the order in which they are read."""
        for members in in_buckets(parameters, transport_at):
            self.waiting.append(partial(self.start, members, transport_at))

    def begin(self) -> None:
        """Start as many buckets as may travel; without any that may, all arrive at once."""
        while self.waiting and len(self.flying) < max(self.ahead, 1):
            self.waiting.popleft()()
            if not self.ahead:
                self.settle()

    def start(self, members: Sequence[LocalParameter], transport_at: TransportAt) -> None:
        """Start the gather over zero1, or where that is one rank, over zero2."""
        flats = [shard_of(p) for p in members]
        names = names_of(members)
        outer, inner = transport_at(2), transport_at(1)
        if all(p.sharding.degrees[2] == 1 for p in members):
            arrival = inner.start_all_gather(flats, names)
        else:
            first = outer.start_all_gather(flats, names)
            arrival = lambda: inner.all_gather(first(), names)  # noqa: E731
        self.flying.append(members)
        arrive = partial(self.arrive, members, arrival)
        for parameter in members:
            parameter.arriving.append(arrive)

    def arrive(self, members: Sequence[LocalParameter], arrival: Arrival) -> None:
        """Copy what has arrived into its tensors, and start the next bucket."""
        for parameter in members:
            parameter.arriving.clear()
        self.flying.remove(members)
        for parameter, flat in zip(members, arrival(), strict=True):
            parameter.memory.copy_(flat)
        self.begin()

    def settle(self) -> None:
        """Wait for all that travels."""
        while self.flying:
            self.flying[0][0].arriving[0]()


def shard_of(parameter: LocalParameter) -> Tensor:
    """What this rank has updated, in the element type of the tensor in memory."""
    assert parameter.leaf is not None
    return parameter.leaf.detach().to(parameter.memory.dtype).reshape(-1)


def in_buckets(
    parameters: Sequence[LocalParameter], transport_at: TransportAt
) -> Iterable[list[LocalParameter]]:
    """Parameters that are gathered together; a compressed transport has buckets of its own."""
    if not all(isinstance(transport_at(level), PlainTransport) for level in (1, 2)):
        return [list(parameters)]
    memories = [parameter.memory for parameter in parameters]
    return [[parameters[i] for i in row] for row in buckets(memories, BUCKET_BYTES)]
