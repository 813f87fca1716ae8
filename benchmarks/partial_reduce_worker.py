"""Run by `partial_reduce.py` on every rank: trains until all ranks have made so many steps together."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from plait.benchmarks.partial_reduce import LR, RANKS, STEPS, Regression, samples
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.compression.optimizers.partial_reduce import PartialReduce
from plait.runtime.compression.ready_ranks import ReadyRanks
from plait.runtime.launch.session import session
from plait.runtime.program import Program

SLEEP_SECONDS = 0.1


def run(name: str, folder: str, pool: GroupPool, seconds: float) -> dict[str, object] | None:
    """Train one program; gives the run's numbers on the first rank."""
    sgd = None if name.startswith("partial") else torch.optim.SGD
    arguments = {"lr": LR, "momentum": 0.9}
    program = Program.open(folder, Regression(), sgd, optimizer_args=arguments, pool=pool)
    optimizer, steps = program.optimizer, 0
    dist.barrier()
    start = time.monotonic()
    while True:
        if isinstance(optimizer, PartialReduce) and isinstance(optimizer.ready, ReadyRanks):
            total = optimizer.ready.arrivals
        else:
            total = steps * RANKS
        if total >= STEPS:
            break
        time.sleep(seconds)
        program.step(samples(1 + steps))
        steps += 1
    dist.barrier()
    took = time.monotonic() - start
    trained = Regression()
    trained.load_state_dict(program.state_dict())
    with torch.no_grad():
        loss = float(trained(**samples(0, 512)))
    counts: list[int] = [0] * RANKS
    dist.all_gather_object(counts, steps)
    return {"seconds": took, "loss": loss, "steps": counts}


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "jobs.json").read_text())
    torch.set_num_threads(1)
    with session() as rank:
        pool, out = GroupPool(rank, PATIENT), {}
        seconds = SLEEP_SECONDS * (job["slowdown"] if rank == RANKS - 1 else 1.0)
        for name, program in job["jobs"].items():
            out[name] = run(name, program, pool, seconds)
        if rank == 0:
            (folder / "out.json").write_text(json.dumps(out))


main()
