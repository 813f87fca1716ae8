"""Run by `slow_link.py` in a namespace: times the steps of programs and counts bytes on the wire."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program

OPTIONS = {"fused": True}  # of AdamW, for all
WARM = 3  # steps before: weights travel whole in the first
COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")


class Case:
    """A program, and what its steps took."""

    def __init__(self, job: dict[str, Any], pool: GroupPool) -> None:
        source = materialize(job["source"], seed=0)
        self.batch, self.pool, self.job = source.batch, pool, job
        self.program = Program.open(job["folder"], source.model, optimizer_args=OPTIONS, pool=pool)
        self.walls, self.cpus, self.link_bytes, self.sent = list[float](), list[float](), 0, 0
        for _ in range(WARM):
            self.program.step(self.batch)

    def step(self) -> None:
        dist.barrier()
        sent_before, sent = int(COUNTER.read_text()), self.pool.sent_bytes.total()
        wall, cpu = time.perf_counter(), time.process_time()
        self.program.step(self.batch)
        self.walls.append(1e3 * (time.perf_counter() - wall))
        self.cpus.append(1e3 * (time.process_time() - cpu))
        dist.barrier()
        self.link_bytes += int(COUNTER.read_text()) - sent_before
        self.sent += self.pool.sent_bytes.total() - sent

    def row(self) -> dict[str, object]:
        """Milliseconds of the median and of the best step, and bytes of a step: on the wire, counted."""
        steps = len(self.walls)
        return {
            "ms": median(self.walls),
            "best": min(self.walls),
            "cpu": median(self.cpus),
            "wire": self.link_bytes / steps,
            "sent": self.sent / steps,
            "is": self.job["is"],
            "planned": self.job["planned"],
        }


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        jobs = json.loads((folder / "jobs.json").read_text())
        cases = {name: Case(job, pool) for name, job in jobs.items()}
        for _ in range(steps):  # in turn: what disturbs the machine disturbs all
            for case in cases.values():
                case.step()
        if rank == 0:
            found = {name: case.row() for name, case in cases.items()}
            (folder / "out.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
