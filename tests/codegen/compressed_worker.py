"""Run by torchrun: trains programs, writes losses, bytes sent, and what all ranks must agree on."""

import json
import sys
import warnings
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

STEPS = 6
SYNCHRONISED = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


def bits(program: Program) -> str:
    """A digest of the weights that this rank computes with."""
    used = program.store.fetch(list(program.store.parameters))
    flats = [tensor.reshape(-1).view(torch.uint8) for tensor in used]
    return sha256(torch.cat(flats).numpy().tobytes()).hexdigest()


def train(job: dict[str, str], pool: GroupPool, folder: Path) -> dict[str, object]:
    source = materialize(job["source"], seed=0)
    options = {"lr": 3e-3}
    program = Program.open(job["folder"], source.model, optimizer_args=options, pool=pool)
    losses, sent = [], 0
    for number in range(STEPS):
        before = sum(pool.sent_bytes[kind] for kind in SYNCHRONISED)
        losses.append(float(program.step(source.batch)))
        sent = sum(pool.sent_bytes[kind] for kind in SYNCHRONISED) - before
        if number == 2:
            program.save(folder / job["name"])
    state = program.state_dict()
    again = Program.open(job["folder"], source.model, optimizer_args=options, pool=pool)
    again.load(folder / job["name"])
    resumed = [float(again.step(source.batch)) for _ in range(3, STEPS)]
    return {
        "losses": losses,
        "sent": sent,
        "bits": bits(program),
        "resumed": resumed,
        "resumed bits": bits(again),
        "norm": float(sum(v.double().norm() ** 2 for v in state.values() if v.is_floating_point())),
    }


def residuals(pool: GroupPool, folder: Path) -> dict[str, torch.Tensor]:
    """Errors of gradients that a checkpoint holds, all workers' and servers' together."""
    total: dict[str, torch.Tensor] = {}
    for key, tensor in checkpoint.read_all(pool.everyone(), folder)[1].items():
        part, _, rest = key.partition("/")
        place, _, name = rest.partition("/")
        if part == "compression" and ".gradients." in place:
            total[name] = total.get(name, 0) + tensor.double()
    return total


def move(saved: Path, job: dict[str, str], pool: GroupPool) -> dict[str, object]:
    """Load a checkpoint under another plan, save it again, and train on."""
    source, again = materialize(job["source"], seed=0), saved.with_name(f"{saved.name} moved")
    program = Program.open(job["folder"], source.model, optimizer_args={"lr": 3e-3}, pool=pool)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        program.load(saved)
    program.save(again)
    before, after = residuals(pool, saved), residuals(pool, again)
    return {
        "owed": float(sum(t.norm() for t in before.values())),
        "changed": max([float((after[n] - before[n]).abs().max()) for n in after], default=None),
        "names": sorted(before) == sorted(after),
        "said": [str(one.message) for one in said if "compressed" in str(one.message)],
        "losses": [float(program.step(source.batch))],
    }


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        known = {job["name"]: job for job in jobs}
        results = {n: train(job, pool, out.parent) for n, job in known.items() if "from" not in job}
        for name, job in known.items():
            if "from" in job:
                results[name] = move(out.parent / job["from"], job, pool)
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, results)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
