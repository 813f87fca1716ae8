"""Run by torchrun: every program over gloo, some compiled as well; bytes and replicas compared."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from plait.codegen.compression.cpp import source
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS, algorithm
from plait.runtime.comm.group_hierarchy import group_hierarchy
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.compression.backends.native import NativeCodec, build
from plait.runtime.compression.backends.reference import ReferenceCodec
from plait.runtime.compression.exchange import BucketOptions, CompressedCollective
from plait.runtime.compression.optimizers.registry import OPTIMIZERS
from plait.runtime.compression.threads import run_ranks
from plait.runtime.launch.session import session
from plait.tests.runtime.compression import language

NEVER_SMALL = BucketOptions(small_bytes=0)
ELEMENTS, STEPS = 50_000, 2
COMPILED = ("sdp4bit.gradients", "sdp4bit.weights", "1-bit-adam.momentum", "trimmed-mean.gradients")


def codecs(inner, outer, directory):
    """The reference and the compiled backend, built by rank 0 first."""
    text = source(*(lower(PROGRAMS[name], inner, outer) for name in COMPILED))
    if dist.get_rank() == 0:
        build(text, directory)
    dist.barrier()
    return ReferenceCodec(), NativeCodec(build(text, directory))


def call(exchange, x, size):
    if exchange.program.collective == "all_reduce":
        return exchange.all_reduce(x, torch.arange(float(size)))
    if exchange.program.collective == "reduce_scatter":
        return exchange.reduce_scatter(x.view(size, -1))
    return exchange.all_gather(x)


def compare(program, mine, pool, both):
    """The backends agree, all ranks agree, and what was counted is what was predicted."""
    size, results = mine.all.size, []
    for codec in both if program.name in COMPILED else both[:1]:
        exchange = CompressedCollective(program, mine, ELEMENTS, NEVER_SMALL, codec)
        torch.manual_seed(mine.all.index)
        for _ in range(STEPS):
            before, predicted = pool.sent_bytes.total(), exchange.sent_bytes
            result = call(exchange, torch.randn(ELEMENTS), size)
            counted = pool.sent_bytes.total() - before
            assert abs(counted - predicted) <= 0.02 * predicted, (program.name, counted, predicted)
        results.append((result, exchange.states))
    first, states = results[0]
    for second, others in results[1:]:
        assert torch.equal(first, second), program.name
        assert all(torch.equal(states[name], others[name]) for name in states), program.name
    if program.collective != "reduce_scatter":
        everybody = mine.all.all_gather(first.contiguous())
        assert all(torch.equal(everybody[0], other) for other in everybody), program.name


def train(mine, inner, codec):
    """A few steps of SDP4Bit end where they end with threads for ranks, bit for bit."""

    def make(parameters, levels, codec=None):
        found = algorithm("sdp4bit")
        kind = OPTIMIZERS[found.optimizer]
        return kind(parameters, levels, 3e-3, program=found, codec=codec, small_bytes=0)

    corpus = language.Corpus(5_000)
    _, weights = language.train(mine, partial(make, codec=codec), corpus, 4)
    size = mine.all.size
    threads = run_ranks(
        lambda levels: language.train(levels, make, corpus, 4), inner, size // inner
    )
    for name, value in threads[mine.all.index][1].items():
        assert torch.equal(weights[name], value), name


def main() -> None:
    inner, directory = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        size = dist.get_world_size()
        mine = group_hierarchy(pool, "data parallel", (tuple(range(size)),), inner)
        both = codecs(inner, size // inner, directory)
        for program in PROGRAMS.values():
            if program.collective != "send":
                compare(program, mine, pool, both)
        train(mine, inner, both[1])
    print("done", rank)


main()
