"""One rank of `cpu_accuracy.py`: opens programs, runs their steps in turn, writes their times.

    torchrun --nproc-per-node 4 cpu_worker.py jobs.json times.json

Rounds go over all programs, so that what disturbs the machine disturbs all alike.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program


def step_seconds(program: Program, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """From a common start to the end of the slowest rank; and the processor seconds of all ranks."""
    dist.barrier()
    start, own = time.perf_counter(), time.process_time()
    program.step(batch)
    used = torch.tensor(time.process_time() - own, dtype=torch.float64)
    dist.barrier()
    spent = time.perf_counter() - start
    dist.all_reduce(used)
    return spent, used.item()


def main(jobs: str, times: str) -> None:
    todo = json.loads(Path(jobs).read_text())
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        opened = []
        for job in todo["programs"]:
            source = materialize(job["source"], seed=0)
            opened.append(
                (job["name"], Program.open(job["folder"], source.model, pool=pool), source.batch)
            )
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in opened}
        for number in range(todo["rounds"] + 1):
            for name, program, batch in opened:
                spent = step_seconds(program, batch)
                if number:  # the first step allocates
                    seconds[name].append(spent)
        if rank == 0:
            Path(times).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
