"""Activations as they travel: rounded alike for all, in the memory that is promised for it."""

import pytest
import torch

from plait.cost_model.communication.collective import CommGroup
from plait.cost_model.communication.compressed_all_reduce import CompressedReductions
from plait.cost_model.communication.stage_transfer import (
    TransferPayload,
    coding_bytes,
    message_bytes,
)
from plait.cost_model.hardware import load_cluster
from plait.ir.compression.registry import PROGRAMS
from plait.ir.plan.workload import CompressibleTransfer
from plait.runtime.comm.group_hierarchy import GroupHierarchy
from plait.runtime.compression.activations import CompressedAllReduce, StageTransferCodec, type_of
from plait.runtime.compression.backends.reference import ReferenceCodec
from plait.runtime.compression.threads import run_ranks
from plait.runtime.verification.live_bytes import LiveBytes

NAMES = ("int8-activations", "fp8-activations")
ROUNDING = {"int8-activations": 0.5 / 127, "fp8-activations": 1 / 16}  # of a group's largest value
SHAPES = [(256, 160), (171, 301)]  # whole tiles of 128, and not
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Idle:
    """A codec that takes no memory of its own, as compiled ones."""

    def run(self, kernel, launch):
        launch.target.zero_()


class Peer:
    """A rank of a group whose others send nothing in particular, and keep nothing."""

    def __init__(self, size):
        self.size, self.index = size, 0

    def all_to_all(self, x):
        return torch.empty_like(x)

    def all_gather(self, x):
        return x.new_empty((self.size, *x.shape))


def value(shape, dtype, seed=0):
    """A matrix that is not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[::-1], generator=generator).to(dtype).t()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_arrives_rounded(name, dtype, shape):
    passing, x = StageTransferCodec(PROGRAMS[f"{name}.send"]), value(shape, dtype)
    sent = passing.encode(x)
    assert sent.dtype == torch.uint8
    assert sent.shape == passing.empty(type_of(x), x.device).shape
    found = passing.decode(sent, type_of(x))
    assert (found.shape, found.dtype) == (x.shape, dtype)
    limit = ROUNDING[name] * float(x.abs().max()) + torch.finfo(dtype).eps * 8
    assert 0 < float((found - x).abs().max()) <= limit


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(300, 300, dtype=torch.int64),
        torch.ones(300, 300, dtype=torch.bool),
        torch.ones(127, 128),
        torch.ones(255, 128, dtype=torch.bfloat16),
    ],
)
def test_what_is_small_or_no_number_travels_as_it_is(x):
    passing = StageTransferCodec(PROGRAMS["int8-activations.send"])
    assert passing.encode(x) is x
    assert passing.decode(x, type_of(x)) is x
    assert passing.empty(type_of(x), x.device).dtype == x.dtype

    def rank(levels):
        CompressedAllReduce(
            PROGRAMS["int8-activations.all_reduce"], levels, ReferenceCodec()
        ).all_reduce(x)
        return levels.all.sent

    assert all(set(sent) == {"all_reduce"} for sent in run_ranks(rank, outer=2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_the_same_on_all_ranks(name, dtype, shape):
    def rank(levels):
        x = value(shape, dtype, levels.all.index)
        summing = CompressedAllReduce(PROGRAMS[f"{name}.all_reduce"], levels, ReferenceCodec())
        return x, summing.all_reduce(x), x.clone(), dict(levels.all.sent)

    of_ranks = run_ranks(rank, outer=3)
    exact = sum(x.double() for x, *_ in of_ranks)
    for x, total, before, sent in of_ranks:
        assert torch.equal(x, before)
        assert torch.equal(total, of_ranks[0][1])
        assert total.dtype == dtype
        assert float((total - exact).abs().max()) <= 0.02 * 4 * float(exact.abs().max())
        assert "all_reduce" not in sent


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sum_takes_no_more_than_promised(dtype, shape, ranks):
    program, x = PROGRAMS["int8-activations.all_reduce"], value(shape, dtype).contiguous()
    peer = Peer(ranks)
    with LiveBytes() as live:
        CompressedAllReduce(program, GroupHierarchy(peer, Peer(1), peer), Idle()).all_reduce(x)
    peak, size, item = live.peak, x.nbytes, x.element_size()
    cluster = load_cluster(f"local:{ranks}")
    reductions = CompressedReductions({"tp": program}, cluster)
    beside = reductions.codec_bytes("tp", size, item, CommGroup(ranks, 1))
    assert size < peak <= size + beside
    assert size + beside <= 1.05 * peak


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_takes_no_more_than_promised(dtype, shape):
    program, x = PROGRAMS["int8-activations.send"], value(shape, dtype).contiguous()
    payload = TransferPayload(x.nbytes, CompressibleTransfer(x.nbytes, x.numel()))
    passing = StageTransferCodec(program, Idle())
    with LiveBytes() as encoding:
        sent = passing.encode(x)
    assert sent.nbytes == message_bytes(payload, program)
    with LiveBytes() as decoding:
        received = passing.empty(type_of(x), x.device)
        passing.decode(received, type_of(x))
    none = TransferPayload(0, CompressibleTransfer())
    assert encoding.peak <= sent.nbytes + coding_bytes(payload, none, program)
    assert decoding.peak <= x.nbytes + coding_bytes(none, payload, program)
