"""One rank of `head_to_head.py`: runs its jobs one after the other, rounds of each alternating.

torchrun --nproc-per-node 4 worker.py jobs.json rows.json
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # so that its import is nobody's memory
import torch.distributed as dist

from plait.benchmarks.peers.engines import PEERS, Job, Step, plait_step
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session

MEMORY_STEPS = 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


class Spent(NamedTuple):
    """One step: from a common start to the end of the slowest rank, and of all ranks' processors."""

    wall: float
    cpu: float


def spent(step: Step) -> Spent:
    dist.barrier()
    start, own = time.perf_counter(), time.process_time()
    step()
    used = torch.tensor(time.process_time() - own, dtype=torch.float64)
    dist.barrier()
    wall = time.perf_counter() - start
    dist.all_reduce(used)
    return Spent(wall, used.item())


def resident_bytes(field: str) -> int:
    """`VmRSS`, what this process has in memory, or `VmHWM`, the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def return_freed_memory(at_once: bool) -> None:
    """Whether memory that is freed leaves the process at once, so that the most it has is what was
    needed; else large blocks are used again, as malloc does after a while by itself."""
    libc = ctypes.CDLL(None)
    for option, default in ((M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, 1 << 26)):
        libc.mallopt(option, 1 << 16 if at_once else default)


class Measured(NamedTuple):
    """An engine that is built: its step, and the most memory of any rank in later steps, beyond what
    the process had before."""

    step: Step
    peak_bytes: int
    loss: float


def measured(job: Job, ours: bool, pool: GroupPool) -> Measured:
    """Build an engine, and the peak of its steps after the first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    step = plait_step(job, pool) if ours else PEERS[job.peer](job)
    first = torch.tensor(step(), dtype=torch.float64)
    gc.collect()
    reset_peak()
    for _ in range(MEMORY_STEPS):
        step()
    peak = torch.tensor(resident_bytes("VmHWM") - before, dtype=torch.float64)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    if job.peer == "pipelining":
        dist.all_reduce(first, dist.ReduceOp.MAX)  # the last stage's
    elif job.peer != "DTensor" and not ours:
        dist.all_reduce(first)
        first /= dist.get_world_size()
    return Measured(step, int(peak), float(first))


def compared(job: Job, rounds: int, pool: GroupPool) -> dict[str, Any]:
    """Both engines of a job: built once for nothing (imports, compiled code), once for memory, and
    stepped in turn."""
    for ours in (True, False):
        measured(job, ours, pool)
    return_freed_memory(at_once=True)
    engines = [measured(job, ours, pool) for ours in (True, False)]
    return_freed_memory(at_once=False)
    for engine in engines:
        engine.step()
    times = [[spent(engine.step) for engine in engines] for _ in range(rounds)]
    return {
        **job._asdict(),
        "rounds": times,
        "peak_bytes": [engine.peak_bytes for engine in engines],
        "losses": [engine.loss for engine in engines],
    }


def main(jobs: str, rows: str) -> None:
    todo = json.loads(Path(jobs).read_text())
    torch.set_num_threads(1)
    with session("gloo") as rank, Path(rows).open("a" if rank == 0 else "r") as file:
        pool = GroupPool(rank, PATIENT)
        for job in todo["jobs"]:
            try:
                row = compared(Job(**job), todo["rounds"], pool)
            except Exception as error:  # one that cannot run this, on every rank: the row says so
                row = {**job, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            torch._dynamo.reset()
            if rank == 0:
                file.write(json.dumps(row) + "\n")
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
