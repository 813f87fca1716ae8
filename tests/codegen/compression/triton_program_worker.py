"""Run by torchrun with TRITON_INTERPRET=1: programs by Triton's kernels alone."""

import json
import sys
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from plait.ir.capture import materialize
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.compression import transports
from plait.runtime.compression.backends.reference import ReferenceCodec
from plait.runtime.compression.backends.triton import TritonCodec
from plait.runtime.launch.session import session
from plait.runtime.program import Program

STEPS = 2


def trained(job: dict[str, str], pool: GroupPool) -> tuple[list[float], str, str]:
    """Losses, a digest of the weights, and the program in a line."""
    source = materialize(job["source"], seed=0)
    program = Program.open(job["folder"], source.model, optimizer_args={"lr": 3e-3}, pool=pool)
    losses = [float(program.step(source.batch)) for _ in range(STEPS)]
    flats = [p.flat.reshape(-1).view(torch.uint8) for p in program.store.parameters.values()]
    return losses, sha256(torch.cat(flats).numpy().tobytes()).hexdigest(), repr(program)


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        results = {}
        for name, job in jobs.items():
            compiled = trained(job, pool)
            launched: list[str] = []
            run = TritonCodec.run

            def counted(self, kernel, launch, run=run, launched=launched):
                launched.append(kernel.name)
                run(self, kernel, launch)

            with (
                patch.object(transports, "BACKENDS", {}),  # a CPU is any device
                patch.object(ReferenceCodec, "run", side_effect=AssertionError("the reference")),
                patch.object(TritonCodec, "run", counted),
            ):
                interpreted = trained(job, pool)
            results[name] = {
                "same": compiled[:2] == interpreted[:2],
                "said": [compiled[2], interpreted[2]],
                "kernels": sorted(set(launched)),
            }
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, results)
        if rank == 0:
            out.write_text(json.dumps(rows))


main()
