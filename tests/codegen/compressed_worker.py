"""Run by torchrun: trains programs, writes losses, bytes sent, and what all ranks must agree on."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.group import Pool
from plait.runtime.program import Program
from plait.runtime.session import session

STEPS = 6
SYNCHRONISED = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


def bits(program: Program) -> str:
    """A digest of the weights that this rank computes with."""
    flats = [kept.flat.reshape(-1).view(torch.uint8) for kept in program.store.kept.values()]
    return sha256(torch.cat(flats).numpy().tobytes()).hexdigest()


def train(job: dict[str, str], pool: Pool, folder: Path) -> dict[str, object]:
    source = materialize(job["source"], seed=0)
    options = {"lr": 3e-3}
    program = Program.open(job["folder"], source.model, optimizer_args=options, pool=pool)
    losses, sent = [], 0
    for number in range(STEPS):
        before = sum(pool.sent[kind] for kind in SYNCHRONISED)
        losses.append(float(program.step(source.batch)))
        sent = sum(pool.sent[kind] for kind in SYNCHRONISED) - before
        if number == 2:
            program.save(folder / job["name"])
    state = program.state_dict()
    again = Program.open(job["folder"], source.model, optimizer_args=options, pool=pool)
    again.load(folder / job["name"])
    resumed = [float(again.step(source.batch)) for _ in range(3, STEPS)]
    return {
        "losses": losses, "sent": sent, "bits": bits(program), "resumed": resumed,
        "norm": float(sum(v.double().norm() ** 2 for v in state.values() if v.is_floating_point())),
    }  # fmt: skip


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = Pool(rank)
        found = {job["name"]: train(job, pool, out.parent) for job in jobs}
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, found)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
