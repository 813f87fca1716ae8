"""Updated weights arrive when somebody reads them, a few buckets ahead, and not over later updates."""

from types import SimpleNamespace

import pytest
import torch

from plait.ir.plan.flat_shard import FlatShard
from plait.runtime.comm.buckets import PlainTransport
from plait.runtime.state.exchanges import updated_weights
from plait.runtime.state.exchanges.updated_weights import UpdatedWeights
from plait.runtime.state.local_parameter import LocalParameter


class OneRank(PlainTransport):
    """Two ranks of which the other one has the same shard; notes what starts and what is awaited."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(size=2))
        self.log: list[str] = []

    def start_all_gather(self, shards, names):
        sent = [shard.clone() for shard in shards]
        self.log.append(f"start {' '.join(names)}")

        def wait():
            self.log.append(f"wait {' '.join(names)}")
            return [shard.repeat(2) for shard in sent]

        return wait


def parameter(name: str) -> LocalParameter:
    memory = torch.zeros(8)
    leaf = torch.nn.Parameter(memory[:4])
    return LocalParameter(name, SimpleNamespace(), (8,), FlatShard(8, (1, 2, 1)), memory, leaf)


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(updated_weights, "BUCKET_BYTES", 32)  # shards of two parameters
    rows = [parameter(name) for name in "abcdef"]
    for number, row in enumerate(rows):
        row.leaf.data.fill_(number + 1)
    return rows


def test_buckets_travel_ahead_of_who_reads_them(rows) -> None:
    transport, updated = OneRank(), UpdatedWeights(ahead=2)
    updated.gather(rows, lambda level: transport)
    updated.begin()
    assert transport.log == ["start a b", "start c d"]
    assert rows[1].flat.tolist() == [2.0] * 8
    assert transport.log[2:] == ["wait a b", "start e f"]
    assert rows[0].flat.tolist() == [1.0] * 8
    updated.settle()
    assert transport.log[4:] == ["wait c d", "wait e f"]
    assert all(not row.arriving for row in rows)


def test_who_reads_before_its_turn_reads_what_was_updated(rows) -> None:
    transport, updated = OneRank(), UpdatedWeights(ahead=1)
    updated.gather(rows, lambda level: transport)
    updated.begin()
    assert rows[5].flat.tolist() == [6.0] * 8
    assert transport.log == ["start a b", "start c d", "start e f", "wait e f"]
    assert [row.flat[7].item() for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_without_any_ahead_each_arrives_before_the_next(rows) -> None:
    transport, updated = OneRank(), UpdatedWeights(ahead=0)
    updated.gather(rows[:4], lambda level: transport)
    updated.begin()
    assert transport.log == ["start a b", "wait a b", "start c d", "wait c d"]
    assert [row.memory[7].item() for row in rows[:4]] == [1.0, 2.0, 3.0, 4.0]
