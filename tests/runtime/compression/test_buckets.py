"""Many tensors in compressed buckets: shapes, sums, replicas and checkpoints."""

import pytest
import torch
from msgspec.structs import replace

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.registry import algorithm
from plait.ir.errors import MismatchError, UsageError
from plait.runtime.compression.buckets import RESIDUAL, CompressedBuckets, TensorState
from plait.runtime.compression.threads import run_ranks

SIZES = (4 * 700, 4 * 3, 4 * 40_000, 4 * 20_000)
LIMIT = 300_000  # bytes: several buckets


def plain(name):
    found = algorithm(name)
    return replace(found, programs=tuple(uncompressed(p) for p in found.programs))


def tensors(rank, step=0):
    draw = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(size, generator=draw) for size in SIZES]


def built(found, levels):
    return CompressedBuckets(found, levels, small_bytes=0, bucket_bytes=LIMIT)


@pytest.mark.parametrize("name", ["one-bit", "trimmed-mean"])
def test_tensors_come_back_in_their_shapes_and_types(name):
    def work(levels):
        mine = tensors(levels.all.index)
        shaped = [mine[0].view(70, 40), mine[1].bfloat16(), mine[2], mine[3]]
        both = [*shaped, mine[1].clone()]
        return both, built(algorithm(name), levels).all_reduce(list(both))

    for before, after in run_ranks(work, 4):
        assert [(t.shape, t.dtype) for t in before] == [(t.shape, t.dtype) for t in after]


def test_exact_sums_and_shards():
    def work(levels):
        compressed = built(plain("sdp4bit"), levels)
        shards = compressed.reduce_scatter(tensors(levels.all.index))
        return shards, compressed.all_gather(shards), len(compressed.exchanges)

    totals = [torch.stack(rows).sum(0) for rows in zip(*map(tensors, range(4)), strict=True)]
    results = run_ranks(work, 2, 2)
    for rank, (shards, wholes, exchanges) in enumerate(results):
        assert exchanges > 2
        for total, shard, whole in zip(totals, shards, wholes, strict=True):
            torch.testing.assert_close(shard, total.chunk(4)[rank], rtol=0, atol=1e-5)
            torch.testing.assert_close(whole, total, rtol=0, atol=1e-5)


def test_replicas_start_exactly_and_follow():
    """Weights are gathered in fp32 once; later steps send four bits of what changed."""

    def work(levels):
        compressed, rank = built(algorithm("sdp4bit"), levels), levels.all.index
        losses, x = [], [t.chunk(4)[rank].clone() for t in tensors(0)]
        for _ in range(3):
            losses.append(compressed.all_gather(x))
            x = [shard + 0.01 for shard in x]
        return losses

    results = run_ranks(work, 2, 2)
    for step, wholes in enumerate(results[0]):
        for whole, first in zip(wholes, tensors(0), strict=True):
            assert (whole - first - 0.01 * step).abs().max() <= 0.002 * step
    for other in results[1:]:
        assert all(
            torch.equal(a, b)
            for mine, theirs in zip(results[0], other, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )


def test_small_tensors_are_exact():
    def work(levels):
        mine = tensors(levels.all.index)
        compressed = CompressedBuckets(
            algorithm("one-bit"), levels, small_bytes=50_000, bucket_bytes=LIMIT
        )
        return compressed.all_reduce(mine), list(compressed.exchanges)

    totals = [torch.stack(rows).sum(0) for rows in zip(*map(tensors, range(4)), strict=True)]
    found, names = run_ranks(work, 4)[0]
    exact = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, totals, strict=True)]
    assert exact == [True, True, False, False]
    assert names == ["gradients.large.0", "gradients.large.1", "gradients.small.0"]


def test_states_are_loaded_before_the_first_step():
    def work(levels):
        rank, optimizer = levels.all.index, algorithm("error-feedback")
        first = built(optimizer, levels)
        first.all_reduce(tensors(rank))
        saved = {
            name: {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()}
            for name, state in first.state_dict().items()
        }
        second = built(optimizer, levels)
        second.load_state_dict(saved)
        straight, resumed = first.all_reduce(tensors(rank, 1)), second.all_reduce(tensors(rank, 1))
        return all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))

    assert all(run_ranks(work, 2, 2))


NAMES = [f"w{number}" for number in range(len(SIZES))]


@pytest.mark.parametrize("name", ["one-bit", "random-k-feedback", "sdp4bit"])
def test_states_by_tensor_go_on_with_the_same_bits(name):
    """Also where padding would have errors of its own, and again before the first step."""

    def work(levels):
        rank, subject = levels.all.index, algorithm(name).programs[0].payload

        def step(buckets, number):
            if subject == "gradients":
                return buckets.all_reduce(tensors(rank, number), NAMES)
            return buckets.all_gather([t.chunk(4)[rank] for t in tensors(9, number)], NAMES)

        first, second, third = (built(algorithm(name), levels) for _ in range(3))
        for number in range(3):
            step(first, number)
        saved = [one._replace(value=one.value.clone()) for one in first.tensor_states()]
        second.load_tensor_states(saved, first.exchange_counts(), 0)
        third.load_tensor_states(second.tensor_states(), second.exchange_counts(), 0)
        straight, resumed = step(first, 3), step(third, 3)
        both = zip(straight, resumed, strict=True)
        return len(saved) >= len(SIZES), all(torch.equal(a, b) for a, b in both)

    assert run_ranks(work, 2, 2) == [(True, True)] * 4


def test_residuals_join_exact_sums_once():
    def work(levels):
        rank, mine = levels.all.index, tensors(levels.all.index)
        buckets = CompressedBuckets(algorithm("one-bit"), levels, small_bytes=10**7)
        debt = TensorState(
            "gradients", RESIDUAL, NAMES[2], True, torch.full((SIZES[2],), rank + 1.0)
        )
        buckets.load_tensor_states([debt], {}, 5)
        first, second = buckets.all_reduce(list(mine), NAMES), buckets.all_reduce(mine, NAMES)
        return [(a - b).mean().item() for a, b in zip(first, second, strict=True)]

    assert run_ranks(work, 4)[0] == pytest.approx([0, 0, 10, 0], abs=1e-5)


def test_mistakes_are_explained():
    def work(levels):
        compressed = built(algorithm("one-bit"), levels)
        compressed.all_reduce([torch.zeros(100)])
        with pytest.raises(MismatchError, match="bucket gradients"):
            compressed.all_reduce([torch.zeros(101)])
        with pytest.raises(UsageError, match="no program for weights"):
            compressed.all_gather([torch.zeros(10)])

    run_ranks(work, 2)
