"""Run by torchrun: every program over gloo, compiled and not, bytes and replicas compared."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from plait.codegen.compression.cpp import source
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.runtime.compression.exchange import Exchange
from plait.runtime.compression.levels import levels
from plait.runtime.compression.native import Native, build
from plait.runtime.compression.reference import Reference
from plait.runtime.group import Pool
from plait.runtime.session import session

ELEMENTS, STEPS = 100_000, 3


def codecs(inner, outer, directory):
    """The reference, and all kernels compiled, by rank 0 first."""
    text = source(*(lower(p, inner, outer) for p in PROGRAMS.values() if p.result != "send"))
    if dist.get_rank() == 0:
        build(text, directory)
    dist.barrier()
    return Reference(), Native(build(text, directory))


def call(exchange, x, size):
    if exchange.program.result == "all_reduce":
        return exchange.all_reduce(x, torch.arange(float(size)))
    if exchange.program.result == "reduce_scatter":
        return exchange.reduce_scatter(x.view(size, -1))
    return exchange.all_gather(x)


def compare(program, mine, pool, both):
    """The backends agree, all ranks agree, and what was counted is what was predicted."""
    size, results = mine.all.size, []
    for codec in both:
        exchange = Exchange(program, mine, ELEMENTS, codec=codec, small_bytes=0)
        torch.manual_seed(mine.all.index)
        for _ in range(STEPS):
            before, predicted = pool.sent.total(), exchange.sent_bytes
            result = call(exchange, torch.randn(ELEMENTS), size)
            counted = pool.sent.total() - before
            assert abs(counted - predicted) <= 0.02 * predicted, (program.name, counted, predicted)
        results.append((result, exchange.states))
    (first, states), (second, others) = results
    assert torch.equal(first, second), program.name
    assert all(torch.equal(states[name], others[name]) for name in states), program.name
    if program.result != "reduce_scatter":
        everybody = mine.all.all_gather(first.contiguous())
        assert all(torch.equal(everybody[0], other) for other in everybody), program.name


def main() -> None:
    inner, directory = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = Pool(rank)
        size = dist.get_world_size()
        mine = levels(pool, "data parallel", (tuple(range(size)),), inner)
        both = codecs(inner, size // inner, directory)
        for program in PROGRAMS.values():
            if program.result != "send":
                compare(program, mine, pool, both)
    print("done", rank)


main()
