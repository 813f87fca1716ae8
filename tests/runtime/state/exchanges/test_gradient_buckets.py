"""Buckets of gradients start in order, two scattered ones at a time, and are small parts of all."""

from types import SimpleNamespace

import torch

from plait.ir.plan.flat_shard import FlatShard
from plait.runtime.state.exchanges.gradient_buckets import GradientBuckets, divided
from plait.runtime.state.local_parameter import LocalParameter

MIB = 2**20


class Travelling:
    """A message that arrives when somebody waits for it."""

    def __init__(self, log: list[str], value: torch.Tensor) -> None:
        self.log, self.value = log, value
        log.append("start")

    def done(self) -> bool:
        return False

    def wait(self) -> torch.Tensor:
        if self.log.count("wait") < self.log.count("start"):
            self.log.append("wait")
        return self.value


def parameters(count: int, elements: int) -> list[LocalParameter]:
    sharding = FlatShard(elements, (1, 1, 2))
    return [
        LocalParameter(str(n), SimpleNamespace(), (elements,), sharding, torch.zeros(elements))
        for n in range(count)
    ]


def test_a_bucket_is_an_eighth_of_all_and_no_less_than_a_mebibyte() -> None:
    two, alone = SimpleNamespace(size=2), SimpleNamespace(size=1)
    for count, each in ((4, 1), (16, 2), (64, 8)):
        rows = divided(parameters(count, MIB // 4), torch.float32, two, alone)
        assert [len(bucket.parameters) for bucket in rows] == [each] * (count // each)


def test_two_buckets_travel_and_the_third_waits_for_the_first() -> None:
    log: list[str] = []
    group = SimpleNamespace(size=2, start_reduce_scatter=lambda rows: Travelling(log, rows.sum(0)))
    tensors = parameters(4, MIB // 4)
    rows = divided(tensors, torch.float32, group, SimpleNamespace(size=1))
    buckets = GradientBuckets(rows, 2**30, {p.name: 1 for p in tensors})
    for tensor in reversed(tensors):
        buckets.add(tensor, torch.ones(MIB // 4))
    assert log[:5] == ["start", "start", "wait", "start", "wait"]
    totals = buckets.finish()
    assert {name: total.unique().tolist() for name, total in totals.items()} == {
        p.name: [2.0] for p in tensors
    }
