"""Measures the machine at hand: operators and collectives, on all ranks at the same time.

    torchrun --nproc-per-node 4 -m plait.runtime.measurement.measure OUT.json [quick]

Each operator runs on every rank at once, for a fixed time, so that ranks that share caches and memory
slow each other down. On processors what counts is the time that the rank itself was given, times the
ranks per processor: other programs on the machine leave it as it is. What is written is read by
`cost_model.calibrate`: measurements are files, not imports.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from ...ir.devices.measured import MachineCosts, MeasuredCost
from ..comm.process_group import Group, GroupPool
from ..comm.watchdog import PATIENT
from ..launch.session import default_device, session
from .samples import Call, Sample, samples

QUICK_SECONDS, FULL_SECONDS = 0.04, 0.2
REPEATS = 2  # of which the fastest counts
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
COLLECTIVE_BYTES = tuple(4**n << 10 for n in range(0, 8))


class Clock:
    """Times calls on a device, many at a time."""

    def __init__(self, device: torch.device, seconds: float, sharing: float = 1.0) -> None:
        """`sharing`: ranks per processor, where there are fewer processors."""
        self.device, self.seconds, self.sharing = device, seconds, sharing

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, calls: list[Call], count: int) -> float:
        """Seconds of `count` calls, round the list."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for i in range(count):
                calls[i % len(calls)]()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3
        begin = time.perf_counter()
        for i in range(count):
            calls[i % len(calls)]()
        return time.perf_counter() - begin

    def each(self, calls: list[Call]) -> float:
        """Seconds of one call, from as many as fit into the clock's time."""
        self.run(calls, min(len(calls), 3))
        self.wait()
        once = max(self.run(calls, 1), 1e-7)
        batch = max(1, min(1000, int(self.seconds / once / 8)))
        return min(self.rate(calls, batch) for _ in range(REPEATS))

    def rate(self, calls: list[Call], batch: int) -> float:
        """Seconds of one call, from batches of them for the clock's time."""
        count, spent, start = 0, 0.0, time.thread_time()
        while spent < self.seconds:
            spent += self.run(calls, batch)
            count += batch
        if self.device.type == "cpu":
            spent = (time.thread_time() - start) * self.sharing
        return spent / count


@torch.no_grad()
def operators(clock: Clock, quick: bool) -> list[MeasuredCost]:
    """Every sample on all ranks at once; the mean of the ranks."""
    results = []
    for sample in samples(clock.device, quick):
        results.append(_operator(clock, sample))
        sample.calls.clear()
    return results


def _operator(clock: Clock, sample: Sample) -> MeasuredCost:
    dist.barrier()
    seconds = torch.tensor(clock.each(sample.calls), dtype=torch.float64, device=clock.device)
    dist.all_reduce(seconds)
    mean = seconds.item() / dist.get_world_size()
    return MeasuredCost(sample.name, sample.by, sample.amount, mean, sample.dtype)


def collectives(clock: Clock, rank: int, world: int) -> list[MeasuredCost]:
    """Every kind at every size in groups of every size that divides the ranks, all groups at once."""
    results, pool = [], GroupPool(rank, PATIENT)
    for size in (n for n in range(2, world + 1) if world % n == 0):
        parts = tuple(tuple(range(at, at + size)) for at in range(0, world, size))
        group = pool.group(f"of {size}", parts)
        for kind in KINDS if size == 2 else KINDS[:-1]:
            for amount in COLLECTIVE_BYTES:
                seconds = _collective(clock, group, kind, amount)
                results.append(MeasuredCost(kind, "bytes", amount, seconds, "float32", size))
    return results


def _collective(clock: Clock, group: Group, kind: str, amount: int) -> float:
    """Seconds of one collective; `amount` bytes as the cost model counts them."""
    call = collective_call(group, kind, amount, clock.device)
    clock.run([call], 2)
    clock.wait()
    count = max(3, min(40, (4 << 20) // amount))
    best = float("inf")
    for _ in range(REPEATS + 1):
        dist.barrier()
        best = min(best, clock.run([call], count) / count)
    slowest = torch.tensor(best, dtype=torch.float64, device=clock.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def collective_call(group: Group, kind: str, amount: int, device: torch.device) -> Call:
    items = amount // 4
    values = torch.randn(items, device=device)
    rows = (
        values.view(group.size, -1)
        if items % group.size == 0
        else values[None].expand(group.size, -1)
    )
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: group.all_reduce(values),
        "all_gather": lambda: group.all_gather(rows[0].contiguous()),
        "reduce_scatter": lambda: group.reduce_scatter(rows),
        "all_to_all": lambda: group.all_to_all(rows),
        "send": lambda: _send(group, values),
    }
    return calls[kind]


def _send(group: Group, x: torch.Tensor) -> None:
    """One way from the first to the second, and the other way in the next call."""
    first, second = group.ranks
    flip = group.sent_bytes["flip"] % 2
    group.sent_bytes["flip"] += 1
    if (group.index == 0) == (flip == 0):
        dist.send(x, second if group.index == 0 else first, group=group.handle)
    else:
        dist.recv(torch.empty_like(x), second if group.index == 0 else first, group=group.handle)


def memory_bytes(device: torch.device, world: int) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // world


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine() or "cpu"


def main(out: str, *flags: str) -> None:
    quick = "quick" in flags
    torch.set_num_threads(1)
    with session() as rank:
        world, device = dist.get_world_size(), default_device()
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        sharing = max(1.0, world / (processors or os.cpu_count() or 1))
        clock = Clock(device, QUICK_SECONDS if quick else FULL_SECONDS, sharing)
        costs = [*operators(clock, quick), *collectives(clock, rank, world)]
        machine = MachineCosts(
            device_name(device),
            device.type,
            world,
            memory_bytes(device, world),
            str(torch.__version__),
            tuple(costs),
            os.cpu_count() or 1,
        )
        if rank == 0:
            Path(out).write_bytes(msgspec.json.encode(machine))


if __name__ == "__main__":
    main(*sys.argv[1:])
