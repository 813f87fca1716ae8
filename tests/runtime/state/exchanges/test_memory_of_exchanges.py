"""What arrives takes its own bytes, and no bucket stays for a part of it."""

from types import SimpleNamespace

import torch

from plait.ir.plan.flat_shard import FlatShard
from plait.runtime.comm.buckets import PlainTransport
from plait.runtime.state.exchanges.gradient_reductions import leave_buckets
from plait.runtime.state.exchanges.weight_gathers import WeightGathers
from plait.runtime.state.local_parameter import LocalParameter
from plait.runtime.verification.live_bytes import LiveBytes


class SameShards(PlainTransport):
    """Two ranks with the same shards."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(size=2))

    def all_gather(self, shards, names):
        return [shard.repeat(2) for shard in shards]


def parameter(name: str, fraction=(1, 1)) -> LocalParameter:
    sharding = FlatShard(1000, (2, 1, 1), fraction)
    return LocalParameter(name, None, (1000,), sharding, torch.ones(sharding.local_elements))


def test_gradients_beside_one_that_was_added_up_leave_their_bucket():
    first, second, third = (parameter(name) for name in "abc")
    with LiveBytes() as live:
        bucket, full = torch.zeros(900), torch.zeros(500)
        first.gradient, second.gradient, third.gradient = *bucket.split(450), full
        del bucket, full
        leave_buckets([first, second, third])
        assert live.bytes == 4 * 1400  # all of the bucket is read
        first.gradient = None
        leave_buckets([second, third])
        assert live.bytes == 4 * 950


def test_weights_with_a_part_in_shards_are_there_once_until_their_backward():
    weights = [parameter(name, (1, 2)) for name in "ab"]
    gathers = WeightGathers(lambda _: SameShards(), limit_bytes=10**6)
    with LiveBytes() as live:
        gathers.retain(weights)
        forward = gathers.take(weights)
        assert live.bytes == 8 * 1000
        del forward
        backward = gathers.take(weights)
        assert [len(flat) for flat in backward.values()] == [1000, 1000]
        assert live.bytes == 8 * 1000
        del backward
        assert live.bytes == 0
