"""Run on 4 ranks: ranks that drift apart, and values that are not finite, are named on all ranks."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from plait.ir.errors import MismatchError, NonFiniteError
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.runtime import toy

LAYOUTS = {"dp": {"dp": 4}, "tp and dp": {"dp": 2, "tp": 2}, "zero1 and pp": {"pp": 2, "zero1": 2}}


def refused(program: Program, pattern: str, batch=None, error=MismatchError) -> None:
    """Within `check_every` steps every rank raises an error that names what is wrong."""
    with pytest.raises(error, match=pattern):
        train(program, batch)


def train(program: Program, batch) -> None:
    for number in range(1, 3):
        program.step(batch or toy.batch(number))


def main(folder: Path) -> None:
    with session("gloo") as rank:
        pool = GroupPool(rank, PATIENT)

        def opened(layout: str, **more) -> Program:
            place = folder / layout.replace(" ", "-")
            if rank == 0 and not place.exists():
                toy.write(place, toy.table(LAYOUTS[layout], 2, "1f1b"))
            dist.barrier()
            program = Program.open(
                place, toy.model(), optimizer_args={"lr": 0.1}, pool=pool, check_every=2, **more
            )
            program.step(toy.batch(0))
            return program

        for layout in LAYOUTS:
            sound = opened(layout)
            for number in range(1, 5):
                sound.step(toy.batch(number))
            program = opened(layout)
            other = {"x": toy.batch(9)["x"]} if rank == 2 else None
            refused(program, "rank 2 and the others differ in the batch", other)
            program = opened(layout)
            program.agreement.every = 1  # updates may bring replicas together again
            if rank == 3:
                with torch.no_grad():
                    parameter = program.store.trainable()[0]
                    parameter.flat[0] = torch.nextafter(parameter.flat[0], parameter.flat[0] + 1)
            refused(program, "ranks have drifted apart: .* differ in the values of ")
        program = opened("dp")
        program.forward_backward(toy.batch(1))
        if rank != 1:  # no collective belongs to this update
            program.optimizer_step()
        refused(program, r"rank 1 and the others differ in the number of the step \(1 there, 2 on")

        for layout in LAYOUTS:
            program = opened(layout, nonfinite="stop")
            for parameter in program.store.trainable():
                if parameter.name == "layers.2.a":
                    parameter.flat.fill_(torch.inf)
            refused(
                program, r"layers\.2 \(its weight layers.2.a is not finite\)", error=NonFiniteError
            )
        program = opened("dp", nonfinite="stop")
        program.request_stop() if rank == 2 else None
        program.step(toy.batch(1))
        assert program.stopping


if __name__ == "__main__":
    main(Path(sys.argv[1]))
