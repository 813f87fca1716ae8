"""Run by torchrun: trains programs; writes losses, bytes sent, and what all ranks must agree on."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program


def train(job: dict[str, object], pool: GroupPool) -> dict[str, object]:
    source = materialize(job["source"], seed=0)
    program = Program.open(job["folder"], source.model, optimizer_args={"lr": 3e-3}, pool=pool)
    losses, sent = [], {}
    for _ in range(job["steps"]):
        before = dict(pool.sent_bytes)
        losses.append(float(program.step(source.batch)))
        sent = {kind: n - before.get(kind, 0) for kind, n in pool.sent_bytes.items()}
    same = [  # along tensor-parallel ranks: weights that are not sharded
        parameter.flat.reshape(-1).view(torch.uint8)
        for parameter in program.store.parameters.values()
        if set(parameter.spec.layout) == {"R"}
    ]
    whole = program.state_dict()
    plain = {name: whole[name].reshape(-1).view(torch.uint8) for name in sorted(whole)}
    bits = {name: sha256(flat.numpy().tobytes()).hexdigest() for name, flat in plain.items()}
    return {
        "losses": losses,
        "sent": sent,
        "stage": program.groups.stage,
        "whole": bits,
        "same": sha256(torch.cat(same).numpy().tobytes()).hexdigest(),
    }


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        found = {job["name"]: train(job, pool) for job in jobs}
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, found)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
