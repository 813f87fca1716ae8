"""Compressed all-reduces over gloo: `torchrun --nproc-per-node=2 benchmarks/exchange.py [--elements N]`.

Wall and CPU milliseconds of the slowest rank, best of several, and bytes that a rank sends, beside
gloo's own all-reduce. Between ranks of one machine the wire is memory: start ranks on several
machines, or in network namespaces with shaped links, to see what compression gains.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from plait.codegen.compression.cpp import source
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.runtime.comm.group_hierarchy import group_hierarchy
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.compression.backends.native import NativeCodec, build
from plait.runtime.compression.exchange import CompressedCollective
from plait.runtime.launch.session import session

NAMES = ("bf16", "eight-bits", "dithering", "error-feedback", "one-bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=16 * 2**20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with session() as rank, tempfile.TemporaryDirectory() as cache:
        pool = GroupPool(rank, PATIENT)
        size = dist.get_world_size()
        mine = group_hierarchy(pool, "all", (tuple(range(size)),))
        programs = [PROGRAMS[f"{name}.gradients"] for name in NAMES]
        text = source(*(lower(program, 1, size) for program in programs))
        native = NativeCodec(build(text, Path(cache)))
        flat = torch.randn(options.elements)
        report(rank, pool, "gloo fp32", lambda: mine.all.all_reduce(flat), options.repeats)
        for program in programs:
            exchange = CompressedCollective(program, mine, flat.numel(), codec=native)
            report(
                rank,
                pool,
                program.name,
                lambda e=exchange: e.all_reduce(flat, in_place=True),
                options.repeats,
            )


def report(rank: int, pool: GroupPool, name: str, work: Callable[[], object], repeats: int) -> None:
    work()
    walls, cpus, before = [], [], pool.sent_bytes.total()
    for _ in range(repeats):
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    slowest = torch.tensor([min(walls), min(cpus)])
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    sent = (pool.sent_bytes.total() - before) / repeats
    if rank == 0:
        wall, cpu = 1e3 * slowest
        print(f"{name:<28}{wall:8.1f} ms{cpu:8.1f} ms CPU{sent / 1e6:9.2f} MB sent")


if __name__ == "__main__":
    main()
