"""Unlike ranks under all-reduce and Partial Reduce: `python benchmarks/partial_reduce.py`.

Four gloo ranks train generated programs of a small model. Each step of a rank takes 100 ms more than its
compute, on the last rank so many times as many (`--slowdown`): a slower machine, and one that needs no
processor here. A run ends when all ranks together have made so many steps; samples per second are those
of all. The loss is the whole module's on samples that nobody trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import cache
from pathlib import Path

import msgspec
import torch

from plait.benchmarks.accuracy import table
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch

WORKER = Path(__file__).with_name("partial_reduce_worker.py")
RANKS, SAMPLES, WIDTH, STEPS = 4, 32, 64, 120
LR = 0.05
CASES = ("momentum", "partial-reduce", "partial-reduce:ready=3")


class Regression(torch.nn.Module):
    """Two layers, and the mean squared error of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 1)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (self.down(self.up(input).tanh()) - target).square().mean()


def samples(seed: int, count: int = SAMPLES) -> dict[str, torch.Tensor]:
    """A batch of a fixed task."""
    draw = torch.Generator().manual_seed(seed)
    input = torch.randn(count, WIDTH, generator=draw)
    return {"input": input, "target": input[:, :1] * input[:, 1:2].tanh()}


class Row(msgspec.Struct, frozen=True):
    """A run: seconds, held-out loss, and steps of every rank."""

    seconds: float
    loss: float
    steps: list[int]

    @property
    def samples_per_second(self) -> float:
        return sum(self.steps) * SAMPLES / RANKS / self.seconds


@cache
def rows(slowdown: float = 3.0) -> dict[str, Row]:
    """The runs of all cases, by optimizer."""
    model = trace(Regression(), samples(0), name="regression")
    with tempfile.TemporaryDirectory() as scratch:
        folder, jobs = Path(scratch), dict[str, str]()
        for number, name in enumerate(CASES):
            options = PlanOptions(pins=pin_all(f"dp={RANKS}"), optimizer=name, micro_batches=1)
            program = compile_program(plan(model, load_cluster(f"local:{RANKS}"), options), model)
            write_program(program, folder / str(number))
            jobs[name] = str(folder / str(number))
        job = {"jobs": jobs, "slowdown": slowdown}
        (folder / "jobs.json").write_text(json.dumps(job))
        launch(RANKS, [str(WORKER), str(folder)], timeout_seconds=300)
        return msgspec.json.decode((folder / "out.json").read_bytes(), type=dict[str, Row])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slowdown", type=float, default=3.0, help="of the last rank")
    measured = rows(parser.parse_args().slowdown)
    plain = measured[CASES[0]].samples_per_second
    head = ["optimizer", "samples/s", "over all-reduce", "held-out loss", "steps of ranks"]
    print(
        table(
            head,
            [
                [
                    name,
                    f"{row.samples_per_second:.0f}",
                    f"{row.samples_per_second / plain:.2f}",
                    f"{row.loss:.4f}",
                    " ".join(map(str, row.steps)),
                ]
                for name, row in measured.items()
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
