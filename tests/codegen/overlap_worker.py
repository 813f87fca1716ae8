"""Run on ranks: trains programs with and without overlap, and says whether all bits are the same."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import Group, GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program

STEPS = 3


def trained(job, folder, pool):
    """Losses, gradients and parameters of every step, and how many collectives were only started."""
    source, started = materialize(job["source"], seed=0), []
    program = Program.open(folder, source.model, optimizer_args={"lr": 3e-3}, pool=pool)
    usual = Group.started

    def counted(group, kind, *rest):
        started.append(kind)
        return usual(group, kind, *rest)

    tensors = []
    Group.started = counted
    for _ in range(STEPS):
        tensors.append(program.forward_backward(source.batch))
        tensors += [p.leaf.grad.clone() for p in program.store.trainable()]
        program.optimizer_step()
    Group.started = usual
    tensors += [p.flat for p in program.store.trainable()]
    return tensors, started


def main():
    jobs, verdicts = json.loads(Path(sys.argv[1]).read_text()), {}
    with session("gloo"):
        pool = GroupPool(dist.get_rank(), PATIENT)
        for job in jobs:
            beside, alone = (trained(job, folder, pool) for folder in job["folders"])
            same = all(torch.equal(a, b) for a, b in zip(beside[0], alone[0], strict=True))
            verdicts[job["name"]] = {"same": same, "beside": beside[1]}
    print(json.dumps(verdicts))


main()
