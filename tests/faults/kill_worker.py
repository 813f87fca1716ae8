"""One rank of a training run that may be killed at any time; under torchrun.

Arguments: folder, batches. Rank 0 logs the samples of every batch, and writes all values at the end.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from plait.runtime.comm.watchdog import WatchOptions
from plait.runtime.execution.sampler import GlobalBatchSampler
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.runtime import toy

EVERY, SAMPLES, PAUSE_SECONDS = 3, 40, 0.05


def main(folder: Path, batches: int) -> None:
    torch.set_num_threads(1)
    data = torch.randn(
        SAMPLES, toy.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with session("gloo") as rank:
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
        program = Program.open(
            folder / "program",
            toy.model(),
            optimizer_args={"lr": 0.01},
            watch=WatchOptions(20, folder / "dump"),
        )
        program.resume(folder / "checkpoint")
        sampler = GlobalBatchSampler(SAMPLES, toy.ROWS, start=program.samples, seed=7)
        for indices in sampler:
            if program.batches == batches:
                break
            number = program.batches
            loss = program.step({"x": data[indices]}).item()
            if rank == 0:
                with (folder / "log").open("a") as log:
                    log.write(json.dumps([number, indices, loss.hex()]) + "\n")
            if program.batches % EVERY == 0:
                program.save(folder / "checkpoint")
            time.sleep(PAUSE_SECONDS)
        state = program.state_dict()
        if rank == 0:
            torch.save(state, folder / "state.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
