"""Programs of several ranks with tensors on GPUs, against the module trained by one process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from plait.benchmarks.gpu_check.check import Machine, Row, check, row
from plait.benchmarks.gpu_check.programs import SMALL, built
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch
from plait.runtime.launch.session import session
from plait.runtime.program import Program

ROLES = ("dp", "zero1", "zero2", "zero3", "tp", "pp")
BOUND, COMPRESSED_BOUND, STEPS = 1e-9, 0.02, 3
PLANS = {  # strategy and compression: how far losses may be from those of one process
    **dict.fromkeys([(f"{role}=2", "none") for role in ROLES], BOUND),
    ("zero1=2", "sdp4bit"): COMPRESSED_BOUND,
    ("dp=2", "error-feedback"): COMPRESSED_BOUND,
}


def eager_losses() -> list[float]:
    """Of the module in one process on the CPU, in float64."""
    module, batch = built("llama", SMALL, torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module(**batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def difference(strategy: str, compress: str, backend: str, device: str) -> float:
    """Largest relative difference of losses between ranks on a device and one process."""
    options = PlanOptions(pins=pin_all(strategy), micro_batches=2, compress=compress)
    model = trace(*built("llama", SMALL, torch.float64))
    with tempfile.TemporaryDirectory() as folder:
        write_program(
            compile_program(plan(model, load_cluster("local:2"), options), model), Path(folder)
        )
        printed = launch(2, [__file__, folder, backend, device], timeout_seconds=90)
    pairs = zip(map(float, printed[0].split()), eager_losses(), strict=True)
    return max(abs(one - other) / abs(other) for one, other in pairs)


def rows(name: str, backend: str, device: str) -> Iterator[Row]:
    for (strategy, compress), bound in PLANS.items():
        try:
            gap = difference(strategy, compress, backend, device)
            measured, passed = f"{gap:.1e}", gap <= bound
        except Exception as error:  # one strategy that fails says nothing of the others
            lines = str(error).strip().splitlines() or [type(error).__name__]
            measured, passed = f"{lines[-1]:.160}", False
        label = strategy if compress == "none" else f"{strategy} as {compress}"
        yield row(f"{name}: {label}", f"≤ {bound:g}", measured, passed)


@check("ranks over gloo", "losses of one process in float64")
def ranks_over_gloo(machine: Machine) -> Iterator[Row]:
    """Two ranks share the first GPU: the paths of CUDA programs without a second GPU."""
    yield from rows("two ranks on one device over gloo", "gloo", machine.device)


@check("ranks over NCCL", "losses of one process in float64", needs_devices=2)
def ranks_over_nccl(machine: Machine) -> Iterator[Row]:
    yield from rows("two GPUs over NCCL", "nccl", "cuda:RANK")


def main(folder: str, backend: str, device: str) -> None:
    """One rank: train, and print the losses."""
    with session(backend) as rank:
        module, batch = built("llama", SMALL, torch.float64)
        place = device.replace("RANK", str(rank))
        options = {"lr": 0.1}
        program = Program.open(folder, module, torch.optim.SGD, options, device=place)
        losses = [program.step(batch).item() for _ in range(STEPS)]
        print(*(repr(loss) for loss in losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
