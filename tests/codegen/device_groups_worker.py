"""Run by torchrun on 4 ranks: a checkpoint of every program goes on under every other."""

import sys
from pathlib import Path

import torch

from plait.ir.capture import materialize
from plait.runtime.launch.session import session
from plait.runtime.program import Program


def main(source: str, *folders: str) -> None:
    with session():
        training = materialize(source, dtype="float64", seed=0)
        programs = [Program.open(f, training.model, device="cpu") for f in folders]
        for number, program in enumerate(programs):
            program.step(training.batch)
            program.save(Path.cwd() / f"checkpoint_{number}")
        for number, program in enumerate(programs):
            other = Program.open(folders[number - 1], training.model, device="cpu")
            other.load_checkpoint(Path.cwd() / f"checkpoint_{number}")
            here, there = program.state_dict(), other.state_dict()
            assert all(torch.equal(here[name], there[name]) for name in here)
            losses = program.step(training.batch).item(), other.step(training.batch).item()
            assert abs(losses[0] - losses[1]) < 1e-12 * abs(losses[0]), losses
            here, there = program.state_dict(), other.state_dict()
            for name, tensor in here.items():
                torch.testing.assert_close(there[name], tensor, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    main(*sys.argv[1:])
