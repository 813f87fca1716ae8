"""One rank of `head_to_head.py`: runs its jobs one after the other, rounds of each alternating.

Memory is that of processes which do nothing else: beside another engine, or after one, what malloc keeps
of it decides the number.

torchrun --nproc-per-node 4 worker.py jobs.json rows.json
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch._dynamo  # so that its import is nobody's memory
import torch.distributed as dist

from plait.benchmarks.peers.engines import PEERS, Job, Step, plait_step
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session

T = TypeVar("T")
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
    """The most memory of any rank in steps of an engine after the first, beyond what the process had
    before it was built, and the loss of the first step."""

    peak_bytes: int
    loss: float


def engine(job: Job, ours: bool, pool: GroupPool) -> Step:
    return plait_step(job, pool) if ours else PEERS[job.peer](job)


def measured(job: Job, ours: bool) -> Measured:
    """What an engine takes in a process of its own, in which one has been built before for nothing, so
    that imports and compiled code are nobody's memory."""
    return_freed_memory(at_once=True)
    with session("gloo") as rank:
        pool = GroupPool(rank, PATIENT)
        engine(job, ours, pool)()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_bytes("VmRSS")
        step = engine(job, ours, pool)
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
        return Measured(int(peak), float(first))


def times(job: Job, rounds: int) -> list[list[Spent]]:
    """Steps of both engines in turn, in one process, after two of each."""
    with session("gloo") as rank:
        pool = GroupPool(rank, PATIENT)
        steps = [engine(job, ours, pool) for ours in (True, False)]
        for step in steps * 2:
            step()
        return [[spent(step) for step in steps] for _ in range(rounds)]


def forked(work: Callable[[], T]) -> T:
    """What `work` gives in a copy of this process, which ends then: its memory is nobody else's."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer: tuple[Any, str] = None, "the process ended"
        try:
            answer = work(), ""
        except Exception as error:  # one that cannot run this, on every rank: the row says so
            answer = None, f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            with os.fdopen(write, "wb") as file:
                pickle.dump(answer, file)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        value, failed = pickle.load(file)
    os.waitpid(child, 0)
    if failed:
        raise RuntimeError(failed)
    return value


def compared(job: Job, rounds: int) -> dict[str, Any]:
    """Both engines of a job: each alone for its memory, both in turn for their times."""
    engines = [forked(partial(measured, job, ours)) for ours in (True, False)]
    return {
        **job._asdict(),
        "rounds": forked(partial(times, job, rounds)),
        "peak_bytes": [engine.peak_bytes for engine in engines],
        "losses": [engine.loss for engine in engines],
    }


def main(jobs: str, rows: str) -> None:
    todo = json.loads(Path(jobs).read_text())
    torch.set_num_threads(1)
    first = int(os.environ["RANK"]) == 0
    with Path(rows).open("a" if first else "r") as file:
        for job in todo["jobs"]:
            try:
                row = compared(Job(**job), todo["rounds"])
            except RuntimeError as error:
                row = {**job, "failed": str(error)}
            if first:
                file.write(json.dumps(row) + "\n")
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
