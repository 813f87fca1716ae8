"""A rank of a thousand starts as a rank of eight does: with its shard, never the whole model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

WORKER = str(Path(__file__).with_name("many_ranks_worker.py"))
WIDTH, LAYERS = 1024, 8
RANK_BYTES = 2**17  # that each of a thousand ranks may take beside the shard, imports included


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Network(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).square().mean()


def network() -> nn.Module:
    return Network(*(Layer() for _ in range(LAYERS)))


def started(folder: Path, ranks: int, strategy: str) -> dict[str, float]:
    """What the last rank needs to open a program of so many ranks."""
    with torch.device("meta"):
        module, batch = network(), {"input": torch.zeros(ranks, WIDTH)}
    model = trace(module, batch)
    options = PlanOptions(pins=pin_all(strategy), memory_actions=("keep",))
    planned = plan(model, load_cluster(f"{ranks // 8}x8xh100"), options)
    write_program(compile_program(planned, model), folder)
    command = [sys.executable, WORKER, str(folder), str(ranks), str(ranks - 1)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    "strategies", [("zero3=8", "zero3=1000"), ("tp=8", "zero1=125,tp=8")], ids=lambda s: s[1]
)
def test_a_rank_of_a_thousand_starts_with_its_shard(strategies, tmp_path) -> None:
    few, many = (
        started(tmp_path / str(ranks), ranks, strategy)
        for ranks, strategy in zip((8, 1000), strategies, strict=True)
    )
    whole_bytes = sum(p.nbytes for p in network().parameters())
    assert 1000 * RANK_BYTES < 0.5 * whole_bytes
    for used in (few, many):
        assert used["shard_bytes"] < 0.3 * whole_bytes
        assert used["peak_bytes"] - used["shard_bytes"] < 1000 * RANK_BYTES
    assert many["cpu_seconds"] < 3 * few["cpu_seconds"]
