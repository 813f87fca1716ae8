"""Run by torchrun: trains programs that keep parts of weights in shards, and moves checkpoints."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.checkpoint import generations as checkpoint
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program

STEPS, MORE = 3, 2
SENT = ("all_reduce", "reduce_scatter", "all_gather")


def opened(job, pool):
    source = materialize(job["source"], seed=0)
    program = Program.open(job["folder"], source.model, optimizer_args={"lr": 3e-3}, pool=pool)
    return program, source.batch


def bits(tensors):
    found = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
    return sha256(torch.cat(found).numpy().tobytes()).hexdigest()


def copies(program):
    """What ranks along zero3 must agree on: weights that are not sharded, and their optimizer states."""
    split = [p for p in program.store.trainable() if p.sharding.partially_sharded]
    states = [
        program.optimizer.state[k.leaf][key] for k in split for key in ("exp_avg", "exp_avg_sq")
    ]
    parts = [k.flat for k in split] + states
    starts = [p.sharding.shard_elements for p in split]
    starts += [start for start in starts for _ in range(2)]
    return bits([flat[start:] for flat, start in zip(parts, starts, strict=True)])


def train(job, pool, folder):
    program, batch = opened(job, pool)
    losses, sent = [], 0
    for step in range(STEPS + MORE):
        before = sum(pool.sent_bytes[kind] for kind in SENT)
        losses.append(float(program.step(batch)))
        sent = sum(pool.sent_bytes[kind] for kind in SENT) - before
        if step + 1 == STEPS:
            program.save(folder / job["name"])
    local_bytes = sum(k.flat.nbytes for k in program.store.parameters.values())
    return {
        "losses": losses,
        "sent": sent,
        "copies": copies(program) if "@" in job["name"] else "",
        "kept": local_bytes,
    }


def moved(jobs, pool, folder):
    """A checkpoint through one plan after the other: whether each saves the bits that it loaded, and
    the losses of going on under the last."""
    first = folder / jobs[0]["name"]
    expected = checkpoint.read_all(pool.everyone(), first)[1]
    place, same = first, []
    for number, job in enumerate(jobs[1:]):
        program, batch = opened(job, pool)
        program.load(place)
        place = folder / f"moved {number}"
        program.save(place)
        found = checkpoint.read_all(pool.everyone(), place)[1]
        same.append(
            found.keys() == expected.keys()
            and all(torch.equal(found[name], expected[name]) for name in expected)
        )
    return {
        "same": same,
        "tensors": len(expected),
        "losses": [float(program.step(batch)) for _ in range(MORE)],
    }


def main() -> None:
    requests, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        jobs = {job["name"]: job for job in requests["jobs"]}
        found = {name: train(job, pool, out.parent) for name, job in jobs.items()}
        found["moved"] = moved([jobs[name] for name in requests["moves"]], pool, out.parent)
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, found)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
