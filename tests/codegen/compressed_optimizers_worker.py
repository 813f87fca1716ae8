"""Run by torchrun: programs whose optimizer talks itself; writes losses, bytes, what ranks agree on."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program

STEPS = 8  # a multiple of how often any of them exchanges here
SYNCHRONISED = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


def sent(pool):
    return sum(pool.sent_bytes[kind] for kind in SYNCHRONISED)


def train(job, pool, folder):
    source = materialize(job["source"], seed=0)
    program = Program.open(job["folder"], source.model, optimizer_args=job["options"], pool=pool)
    losses, moved = [], []
    for number in range(STEPS):
        before = sent(pool)
        losses.append(float(program.step(source.batch)))
        moved.append(sent(pool) - before)
        if number == STEPS // 2 - 2:  # between two exchanges
            program.save(folder / job["name"])
    again = Program.open(job["folder"], source.model, optimizer_args=job["options"], pool=pool)
    again.load(folder / job["name"])
    resumed = [float(again.step(source.batch)) for _ in range(STEPS // 2 - 1, STEPS)]
    norm = sum(
        v.double().norm() ** 2 for v in program.state_dict().values() if v.is_floating_point()
    )
    return {
        "losses": losses,
        "sent": moved,
        "resumed": resumed,
        "norm": float(norm),
        "same": all(torch.equal(a.flat, b.flat) for a, b in pairs(program, again)),
        "agree": all(agree(p.flat) for p in program.store.trainable() if job["agree"]),
        "gradient": float(sum(g.double().norm() ** 2 for g in program.full_gradients().values())),
    }


def pairs(one, other):
    return zip(one.store.parameters.values(), other.store.parameters.values(), strict=True)


def agree(flat):
    rows = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, flat)
    return all(torch.equal(rows[0], row) for row in rows)


def move(job, pool, folder):
    """Load a checkpoint under another plan: whole weights, and one more step."""
    source = materialize(job["source"], seed=0)
    program = Program.open(job["folder"], source.model, optimizer_args=job["options"], pool=pool)
    program.load(folder / job["from"])
    again = folder / f"{job['name']} again"
    weights = program.state_dict()
    program.save(again)
    program.load(again)
    after = program.state_dict()
    unchanged = all(torch.equal(weight, after[name]) for name, weight in weights.items())
    return {"kept": unchanged, "losses": [float(program.step(source.batch))]}


def main():
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool, results = GroupPool(rank, PATIENT), {}
        for job in jobs:
            results[job["name"]] = (move if "from" in job else train)(job, pool, out.parent)
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, results)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
